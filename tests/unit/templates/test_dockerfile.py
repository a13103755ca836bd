"""Dockerfiles: what they come to, and by which line they are refused before anything runs."""

import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.templates import steps
from cloche_server.templates.dockerfile.parser import parse
from cloche_server.templates.dockerfile.problem import DockerfileError
from cloche_server.templates.dockerfile.translate import Translated, Translator
from cloche_server.templates.steps import Step
from cloche_wire.build_context import Context
from cloche_wire.ignore import Ignore

START = [Step("USER", ["root"]), Step("WORKDIR", ["/"]), Step("SHELL", ["/bin/sh", "-c"])]
END = [Step("USER", ["user"]), Step("WORKDIR", ["/home/user"])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    (made / "src" / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "src/main.py", "src/sub/c.py", "src/sub/d.txt"):
        (made / name).write_text(name)
    (made / "src" / "link").symlink_to("main.py")
    return made


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    made.mkdir()
    return made


def translated(text: str, folder: Path, scratch: Path, **build_args: str) -> Translated:
    found = Translator(Context(folder, scratch), build_args).translate(parse(text))
    steps.check(found.description)
    return found


def body(found: Translated) -> list[Step]:
    """The steps between those that every translation begins and ends with."""
    said = found.description.steps
    assert said[: len(START)] == START
    assert said[-len(END) :] == END
    return said[len(START) : -len(END)]


def names(found: Translated, number: int = 0) -> list[str]:
    with tarfile.open(found.archives[number].path) as archive:
        return sorted(archive.getnames())


def test_the_dockerfile_of_the_users_document(folder: Path, scratch: Path) -> None:
    text = """FROM e2bdev/code-interpreter:latest

RUN pip install pandas numpy matplotlib seaborn
RUN npm install axios express
RUN apt-get update && apt-get install -y curl git vim
"""
    found = translated(text, folder, scratch)
    assert found.description.from_image == "e2bdev/code-interpreter:latest"
    assert [step.args for step in body(found)] == [
        ["pip install pandas numpy matplotlib seaborn"],
        ["npm install axios express"],
        ["apt-get update && apt-get install -y curl git vim"],
    ]
    assert found.description.start_cmd == ""


def test_lines_go_on_and_comments_within_them_do_not(folder: Path, scratch: Path) -> None:
    text = "# a comment\nfrom x\nrun one && \\\n  # not this\n\n  two \\\n  && three\nENV A=1 \\\n  B=2\n"
    run, env = body(translated(text, folder, scratch))
    assert run.args == ["one &&   two   && three"]
    assert env == Step("ENV", ["A", "1", "B", "2"])
    windows = "# escape=`\r\nFROM x\r\nRUN a `\r\n  b\\\r\n"
    assert body(translated(windows, folder, scratch))[0].args == ["a   b\\"]


def test_heredocs_are_scripts_and_files(folder: Path, scratch: Path) -> None:
    text = """FROM x
RUN <<EOF
echo one
FROM nothing
EOF
RUN python3 <<"X" && echo $HOME
print("$HOME")
X
COPY <<-one <<'two' /etc/
\t$A of mine
\tone
$A stays
two
RUN <<EOF
#!/usr/bin/env python3
print(1)
EOF
ENV A=1
"""
    found = translated(text, folder, scratch)
    said = body(found)
    assert said[0].args == ["echo one\nFROM nothing\n"]
    assert said[1].args == ['python3 <<"X" && echo $HOME\nprint("$HOME")\nX']
    assert [step.args for step in said[2:4]] == [["one", "/etc/", "0:0", ""], ["two", "/etc/", "0:0", ""]]
    contents = [archive.path for archive in found.archives]
    with tarfile.open(contents[1]) as archive:
        assert archive.extractfile("two").read() == b"$A stays\n"  # type: ignore[union-attr]
    ran = subprocess.run(["/bin/sh", "-c", said[4].args[0]], capture_output=True, text=True, check=True)
    assert ran.stdout == "1\n"


def test_a_script_that_fails_fails(folder: Path, scratch: Path) -> None:
    text = "FROM x\nRUN <<EOF\n#!/bin/sh\nexit 7\nEOF\n"
    (step,) = body(translated(text, folder, scratch))
    assert subprocess.run(["/bin/sh", "-c", step.args[0]], check=False).returncode == 7


def test_variables_are_those_of_docker(folder: Path, scratch: Path) -> None:
    text = r"""ARG BASE=img VERSION=1
FROM ${BASE}:$VERSION
ARG VERSION
ARG MODE=fast
ENV PLACE=/srv/$VERSION QUOTED='$HOME' ESCAPED=\$HOME DOUBLE="a b $MODE"
ENV OLD style value
WORKDIR $PLACE
USER ${NOBODY:-worker}
COPY $MODE.txt $PLACE/
"""
    (folder / "slow.txt").touch()
    found = translated(text, folder, scratch, MODE="slow")
    assert found.description.from_image == "img:1"
    said = found.description.steps[len(START) :]
    assert said[0] == Step("ARG", ["VERSION", "1"])
    assert said[1] == Step("ARG", ["MODE", "slow"])
    values = dict(zip(said[2].args[::2], said[2].args[1::2], strict=True))
    known = {"VERSION": "1", "MODE": "slow", "HOME": "/root"}
    assert {name: steps.expand(value, known) for name, value in values.items()} == {
        "PLACE": "/srv/1", "QUOTED": "$HOME", "ESCAPED": "$HOME", "DOUBLE": "a b slow",
    }  # fmt: skip
    assert said[3].args == ["OLD", "style value"]
    assert said[4:6] == [Step("WORKDIR", ["$PLACE"]), Step("USER", ["worker"])]
    assert said[6].args == ["slow.txt", "$PLACE/", "0:0", ""]


def test_files_are_packed_as_they_are_to_lie(folder: Path, scratch: Path) -> None:
    text = """FROM x
COPY a.txt /one
COPY src /all
COPY --chown=user:user --chmod=0755 *.txt src/*.py /many/
COPY . /
COPY ["a.txt", "/with space/"]
"""
    found = translated(text, folder, scratch)
    assert [step.args for step in body(found)] == [
        ["a.txt", "/one", "0:0", ""],
        [".", "/all", "0:0", ""],
        [".", "/many/", "user:user", "0755"],
        [".", "/", "0:0", ""],
        ["a.txt", "/with space/", "0:0", ""],
    ]
    assert names(found, 1) == ["link", "main.py", "sub", "sub/c.py", "sub/d.txt"]
    assert names(found, 2) == ["a.txt", "b.txt", "main.py"]
    # The same files are the same archive: it is sent once.
    assert len(found.archives) == 4


def test_hashes_follow_content_names_and_modes_and_nothing_else(folder: Path, scratch: Path) -> None:
    context = Context(folder, scratch)
    before = context.pack(["src"]).files_hash
    (folder / "src" / "main.py").touch()
    assert context.pack(["src"]).files_hash == before
    (folder / "src" / "main.py").chmod(0o755)
    changed = context.pack(["src"]).files_hash
    (folder / "src" / "main.py").write_text("other")
    assert len({before, changed, context.pack(["src"]).files_hash}) == 3


def test_what_is_ignored_does_not_belong_to_the_context(folder: Path, scratch: Path) -> None:
    (folder / ".dockerignore").write_text(
        "# none\n**/*.txt\n!b.txt\n/src/sub\n!src/sub/c.py\n.dockerignore\n"
    )
    found = translated("FROM x\nCOPY . /\n", folder, scratch)
    assert names(found) == ["b.txt", "src", "src/link", "src/main.py", "src/sub/c.py"]
    with pytest.raises(DockerfileError, match="line 2"):
        translated("FROM x\nCOPY a.txt /\n", folder, scratch)


@pytest.mark.parametrize(
    ("patterns", "path", "excluded"),
    [
        (["*"], "a/b", True),
        (["*/b"], "a/b", True),
        (["*/b"], "a/x/b", False),
        (["**/b"], "a/x/b", True),
        (["**/b"], "b", True),
        (["a?c"], "abc", True),
        (["[a-c]x"], "bx", True),
        (["[!a-c]x"], "bx", False),
        (["a", "!a/b"], "a/b", False),
        (["./a/"], "a", True),
        (["a"], "ab", False),
    ],
)
def test_patterns_of_dockerignore(patterns: list[str], path: str, excluded: bool) -> None:
    assert Ignore(patterns).excludes(path) is excluded


def test_archives_are_unpacked_by_add_and_not_by_copy(folder: Path, scratch: Path) -> None:
    for suffix in ("", ":gz", ":bz2", ":xz"):
        with tarfile.open(folder / f"t{suffix[1:]}", f"w{suffix}") as archive:
            archive.add(folder / "a.txt", "in/a.txt")
    text = "FROM x\n" + "".join(f"ADD t{suffix} /to\n" for suffix in ("", "gz", "bz2", "xz")) + "COPY t /t\n"
    found = translated(text, folder, scratch)
    assert [step.args[:2] for step in body(found)] == [[".", "/to/"]] * 4 + [["t", "/t"]]
    # The same content in four wrappings is one archive.
    assert len(found.archives) == 2
    assert names(found, 0) == ["in/a.txt"]


def test_addresses_are_fetched_inside_the_build(folder: Path, scratch: Path) -> None:
    digest = "a" * 64
    text = f"FROM x\nADD --checksum=sha256:{digest} https://example.com/v1/tool?x=1 /opt/\n"
    (step,) = body(translated(text, folder, scratch))
    assert step.kind == "EXEC"
    assert step.args[-5:] == ["https://example.com/v1/tool?x=1", "/opt/tool", "0:0", "0600", digest]


def test_stages_give_files_to_each_other(folder: Path, scratch: Path) -> None:
    text = """FROM base AS Tools
RUN make
FROM unused AS never
RUN nothing
FROM tools AS more
RUN more
FROM base
COPY --from=tools /out/bin /usr/bin/
COPY --from=0 --chown=user lib /lib
COPY --from=alpine:3 /etc/os-release /etc/alpine
COPY --from=more /more /more
USER worker
CMD ["serve", "a b"]
"""
    description = translated(text, folder, scratch).description
    assert [(stage.name, stage.from_image, stage.from_stage) for stage in description.stages] == [
        ("image/0", "alpine:3", ""),
        ("tools", "base", ""),
        ("more", "", "tools"),
    ]
    assert [step.args for step in description.steps if step.kind == "COPY_FROM"] == [
        ["tools", "/out/bin", "/usr/bin/", "0:0", ""],
        ["tools", "/lib", "/lib", "user", ""],
        ["image/0", "/etc/os-release", "/etc/alpine", "0:0", ""],
        ["more", "/more", "/more", "0:0", ""],
    ]
    assert description.steps[-1] == Step("WORKDIR", ["/home/user"])
    assert (description.start_cmd, description.ready_cmd) == ("serve 'a b'", "sleep 20")


@pytest.mark.parametrize(
    ("lines", "start"),
    [
        (["CMD serve --port 80"], "serve --port 80"),
        (['ENTRYPOINT ["serve"]', 'CMD ["--port", "80"]'], "serve --port 80"),
        (['CMD ["a"]', 'ENTRYPOINT ["serve"]'], "serve a"),
        (["ENTRYPOINT serve", 'CMD ["ignored"]'], "serve"),
        (["CMD one", "CMD two"], "two"),
    ],
)
def test_the_start_command_is_what_docker_would_run(
    lines: list[str], start: str, folder: Path, scratch: Path
) -> None:
    assert translated("\n".join(["FROM x", *lines]), folder, scratch).description.start_cmd == start


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("", 1, "empty"),
        ("# only a comment\n", 1, "empty"),
        ("RUN true\n", 1, "before the first FROM"),
        ("ARG A=1\n", 1, "no FROM"),
        ("FROM\n", 1, "takes an image"),
        ("FROM a b\n", 1, "takes an image"),
        ("FROM a AS x\nFROM b AS x\n", 2, "new name"),
        ("FROM --platform=linux/s390x a\n", 1, "this machine"),
        ("FROM a\nVOLUME /data\n", 2, "not supported: VOLUME"),
        ("FROM a\n\n\nHEALTHCHECK CMD true\n", 4, "not supported"),
        ("FROM a\nONBUILD RUN x\n", 2, "not supported"),
        ("FROM a\nRUN --mount=type=secret,id=x true\n", 2, "--mount"),
        ("FROM a\nRUN\n", 2, "says nothing"),
        ("FROM a\nRUN one \\\n two \\\n three\nNONSENSE x\n", 5, "not supported"),
        ("FROM a\nRUN <<EOF\nno end\n", 2, "has no end"),
        ("FROM a\nCOPY missing /\n", 2, "no such file"),
        ("FROM a\nCOPY ../../etc/passwd /\n", 2, "outside"),
        ("FROM a\nCOPY a.txt b.txt /x\n", 2, "slash"),
        ("FROM a\nCOPY --parents a.txt /x\n", 2, "--parents"),
        ("FROM a\nCOPY --chmod=u+x a.txt /x\n", 2, "octal"),
        ("FROM a\nCOPY --chown=a --chown=b a.txt /x\n", 2, "twice"),
        ("FROM a\nENV A\n", 2, "names and values"),
        ('FROM a\nENV A="x\n', 2, "no end"),
        ("FROM a\nARG 1A\n", 2, "not a name"),
        ("FROM a\nUSER a b\n", 2, "not a user"),
        ("FROM a\nSHELL /bin/sh\n", 2, "list"),
        ("FROM a\nADD --checksum=md5:1 https://example.com/x /x\n", 2, "checksum"),
        ("FROM a\n$$$\n", 2, "not an instruction"),
        ("# escape=x\nFROM a\n", 1, "escape"),
    ],
)
def test_what_cannot_be_built_is_refused_by_its_line(
    text: str, line: int, why: str, folder: Path, scratch: Path
) -> None:
    with pytest.raises(DockerfileError, match=f"^line {line}: .*") as raised:
        translated(text, folder, scratch)
    assert why in raised.value.message


@pytest.mark.fuzz
@given(st.text(alphabet="FROMRUNCOPYENV \n\\\"'<-E$={}[],#`ax1/", max_size=200))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    folder = Path(__file__).parent
    try:
        Translator(Context(folder, folder)).translate(
            [one for one in parse(text) if one.name not in ("COPY", "ADD")] or parse("FROM x")
        )
    except DockerfileError as error:  # any other error is a failure
        assert str(error).startswith("line ")  # noqa: PT017
