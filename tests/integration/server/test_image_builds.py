"""Templates of images, from a registry on loopback: what is in them, who gets them, and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support import small_roots
from tests.support.fixtures import NEEDS_A_SERVER, connect_options, running
from tests.support.oci_images import HERE, Images, digest_of
from tests.support.registry import Registry
from tests.support.server import Server
from tests.support.small_roots import Tar
from tests.support.template_requests import Built, build

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("skopeo", "musl"), pytest.mark.timeout(180)]

ALPINE_ENV = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "FLAVOUR=musl"]
SECRET = "a-password-of-a-registry"


class World(NamedTuple):
    """A server, and what it may pull from."""

    server: Server
    images: Images
    open: Registry
    closed: Registry
    """Asks for a name and a password."""
    local: Path
    """The operator's own."""

    def build(self, name: str, image: str, *, registry: Registry | None = None, **more: Any) -> Built:
        """Of the operator's folder, or of one of the registries."""
        is_local = image.startswith(("oci:", "docker-archive:"))
        image = image if is_local else f"{(registry or self.open).host}/{image}"
        return build(self.server, name, fromImage=image, **more)

    def sandbox(self, name: str) -> Sandbox:
        return connect_options(self.server, Sandbox.create, name)


@pytest.fixture(
    scope="module", params=["container", pytest.param("gvisor", marks=pytest.mark.needs("runsc"))]
)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("images")
    state, local = folder / "state", folder / "local"
    images = Images()
    alpine = images.layer(small_roots.alpine_like())
    images.image("alpine", "3", [alpine], config={"Env": ALPINE_ENV, "WorkingDir": "/srv", "User": "nobody"})
    other = images.image("alpine", "other", [alpine], architecture="s390x")
    ours = images.image("alpine", "ours", [alpine])
    images.index("alpine", "both", [other, ours])
    images.index("alpine", "others", [other])
    images.image("distroless", "1", [images.layer(small_roots.distroless_like())])
    state.mkdir()
    local.mkdir()
    with Registry(images).running() as registry, Registry(images, {"robot": SECRET}).running() as closed:
        hosts = json.dumps([registry.host, closed.host])
        settings = f'[builds]\ninsecure_registries = {hosts}\nlocal_images = "{local}"\nmax_image_mib = 64\n'
        (state / "config.toml").write_text(settings)
        with running(state, isolation=request.param) as server:
            yield World(server, images, registry, closed, local)


@pytest.fixture
def said(world: World) -> Iterator[Callable[[str, str], str]]:
    """What a command prints in a sandbox of a template."""
    made: dict[str, Sandbox] = {}

    def run(name: str, command: str) -> str:
        if name not in made:
            made[name] = world.sandbox(name)
        return made[name].commands.run(command).stdout

    yield run
    for sandbox in made.values():
        sandbox.kill()


Said = Callable[[str, str], str]


# --- what is in them -----------------------------------------------------------------------------------


def test_an_image_without_bash_runs_commands_and_files(world: World, said: Said) -> None:
    """Musl and busybox: by `sh`, as `user`, with the image's variables and what all templates have."""
    built = world.build(
        "alpine", "alpine:3", steps=[{"type": "RUN", "args": ["of-musl > /code/made; id -un"]}]
    )
    assert built.is_ready, built
    assert said("alpine", "cat /code/made; whoami; pwd; echo $FLAVOUR") == "of musl\nuser\n/home/user\nmusl\n"
    assert said("alpine", "stat -c '%a %U' /code /usr/local /home/user") == "777 root\n777 root\n755 user\n"
    assert said("alpine", "of-musl; ls -d /etc/alpine-release; ls /.cloche-*; true").startswith(
        "of musl\n/etc"
    )
    with world.sandbox("alpine") as sandbox:
        sandbox.files.write("/home/user/file", "content")
        assert sandbox.files.read("/home/user/file") == "content"
        assert sandbox.commands.run("cat file").stdout == "content"
        with pytest.raises(Exception, match="needs python3 and IPython"):
            sandbox.run_code("1 + 1")


def test_an_image_without_any_shell_has_files(world: World) -> None:
    """Nothing but one program: files work, the program runs, and a shell line says that there is no shell."""
    built = world.build("distroless", "distroless:1")
    assert built.is_ready, built
    assert "The image has no shell" in built.log
    with world.sandbox("distroless") as sandbox:
        sandbox.files.write("/home/user/file", "content")
        assert [entry.name for entry in sandbox.files.list("/home/user")] == ["file"]
        with pytest.raises(Exception, match="cannot execute '/bin/bash': no such file or directory"):
            sandbox.commands.run("true")


def test_the_record_of_a_build_names_its_image_by_digest(world: World) -> None:
    built = world.build("pinned", "alpine:both")
    manifest = json.loads((world.server.templates / built.build_id / "manifest.json").read_text())
    (digest,) = {digest_of(text) for name, (_, text) in world.images.manifests.items() if name[1] == "ours"}
    assert manifest["image"] == f"{world.open.host}/alpine@{digest}"
    assert world.build("by-digest", f"alpine@{digest}").is_ready


def test_an_image_that_is_known_is_not_pulled_again(world: World) -> None:
    world.build("once", "alpine:3")
    world.open.asked.clear()
    again = world.build("twice", "alpine:3")
    assert again.is_ready
    assert "CACHED all 1 layers" in again.log
    assert world.open.blobs_sent() == []
    lower = world.images.layer(small_roots.alpine_like())
    upper = world.images.layer(Tar().add("etc/upper", b"1").bytes())
    world.images.image("alpine", "more", [lower, upper])
    assert world.build("more", "alpine:more").is_ready
    assert lower["digest"] not in world.open.blobs_sent()
    assert upper["digest"] in world.open.blobs_sent()


def test_layers_hide_what_lies_below_them(world: World, said: Said) -> None:
    """Files, folders and all that a folder held; what the same layer has brought stays."""
    lower = Tar().folder("a").add("a/one", b"1").add("a/two", b"2").folder("b").add("b/low", b"1")
    lower.folder("c").folder("c/deep").add("c/deep/low", b"1").add("c/gone", b"1").add("d", b"1").link(
        "e", "b"
    )
    upper = Tar().add("a/.wh.one").add("b/.wh..wh..opq").add("b/high", b"2").add(".wh.d")
    upper.folder("c").folder("c/deep").add("c/deep/high", b"2").add("c/.wh..wh..opq").add(".wh.nothing")
    upper.add("e/.wh.none").folder("d2")
    layers = [world.images.layer(part) for part in (small_roots.alpine_like(), lower.bytes(), upper.bytes())]
    world.images.image("hiding", "1", layers)
    built = world.build("hiding", "hiding:1")
    assert built.is_ready, built
    found = said("hiding", "find /a /b /c /d2 | sort; ls -d /d 2>&1; true").splitlines()
    assert found[:-1] == ["/a", "/a/two", "/b", "/b/high", "/c", "/c/deep", "/c/deep/high", "/d2"]
    assert "No such file" in found[-1]


def test_files_folders_and_links_take_each_others_place(world: World, said: Said) -> None:
    lower = (
        Tar()
        .add("file", b"1")
        .folder("folder")
        .add("folder/x", b"1")
        .link("link", "folder")
        .folder("usr/lib2")
    )
    lower.link("lib2", "usr/lib2")
    upper = Tar().folder("file").add("file/in", b"2").add("folder", b"2").folder("link").add("link/in", b"3")
    upper.add("lib2/through", b"4")
    layers = [world.images.layer(part) for part in (small_roots.alpine_like(), lower.bytes(), upper.bytes())]
    world.images.image("places", "1", layers)
    assert world.build("places", "places:1").is_ready
    assert said("places", "cat /file/in /folder /link/in /usr/lib2/through; stat -c %F /link /lib2") == (
        "2234directory\nsymbolic link\n"
    )


def test_layers_packed_by_zstd_and_not_at_all(world: World, said: Said) -> None:
    more = Tar().add("etc/by-zstd", b"z").bytes()
    packed = subprocess.run(["zstd", "-qc"], input=more, capture_output=True, check=True).stdout
    plain = world.images.layer(Tar().add("etc/plain", b"p").bytes(), "")
    layers = [world.images.layer(small_roots.alpine_like()), world.images.layer(packed, "zstd"), plain]
    world.images.image("packed", "1", layers)
    built = world.build("packed", "packed:1")
    assert built.is_ready, built
    assert said("packed", "cat /etc/by-zstd /etc/plain") == "zp"


def test_images_of_the_operators_folder(world: World, said: Said) -> None:
    layout = world.images.write_layout(world.local / "layout", "alpine", "3")
    archive = world.images.write_docker_archive(world.local / "saved.tar", "alpine", "3")
    for path in (layout, *layout.rglob("*"), archive):
        path.chmod(0o755)
    assert world.build("of-layout", "oci:layout:3").is_ready
    assert world.build("of-archive", "docker-archive:saved.tar").is_ready
    assert said("of-archive", "of-musl") == "of musl\n"
    assert "no such image" in world.build("no-layout", "oci:missing").error
    assert "not a name below" in world.build("up", "oci:../state").error


# --- who gets them -------------------------------------------------------------------------------------


def _credentials(password: str) -> dict[str, Any]:
    return {"fromImageRegistry": {"type": "registry", "username": "robot", "password": password}}


def test_a_private_image_needs_its_credentials_each_time(world: World) -> None:
    """Also when all of it is known already: another key of the team may not have the right to it."""
    built = world.build("private", "alpine:3", registry=world.closed, **_credentials(SECRET))
    assert built.is_ready, built
    for more in ({}, _credentials("wrong")):
        refused = world.build("private-too", "alpine:3", registry=world.closed, **more)
        assert "the registry does not open image" in refused.error
        assert refused.step == "base"


def test_credentials_are_nowhere_afterwards(world: World, said: Said) -> None:
    built = world.build("secret", "alpine:both", registry=world.closed, **_credentials(SECRET))
    assert SECRET not in built.log
    for path in world.server.state.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in world.server.log.read_text()
    assert SECRET not in said("secret", "env; cat /proc/*/environ 2>/dev/null; true")


def test_what_was_fetched_is_gone_when_it_is_unpacked(world: World) -> None:
    world.build("gone", "alpine:3")
    assert list((world.server.state / "pulls").iterdir()) == []


# --- what is refused -----------------------------------------------------------------------------------


def test_images_that_are_not_there_or_not_for_here_say_so(world: World) -> None:
    for image, why in (
        ("alpine:none", "no such image"),
        ("nothing/at-all:1", "no such image"),
        ("alpine:others", f"the image is not for this machine, linux/{HERE}; there is: linux/s390x"),
        ("alpine:other", f"the image is not for this machine, linux/{HERE}, but for linux/s390x"),
        ("alpine@sha256:" + "a" * 64, "no such image"),
    ):
        built = world.build("refused", image)
        assert why in built.error, (image, built)
        assert built.step == "base"


def test_registries_that_are_not_to_be_reached_say_so(world: World) -> None:
    for image, why in (
        ("127.0.0.1:1/a", "no registry for builds: 127.0.0.1:1"),
        ("localhost:1/a", "no registry for builds: localhost:1"),
        ("10.0.0.1:5000/a", "at an address that is not for builds: 10.0.0.1:5000"),
        ("169.254.169.254:80/latest", "at an address that is not for builds"),
        ("no-such-host.invalid:443/a", "registry no-such-host.invalid:443 cannot be reached"),
    ):
        built = build(world.server, "unreached", fromImage=image)
        assert why in built.error, (image, built)
        assert built.step == "base"


def test_a_blob_is_not_fetched_from_a_private_address(world: World) -> None:
    """A registry may send its clients elsewhere; not to what sandboxes may not reach either."""
    layer = world.images.layer(Tar().add("x", b"elsewhere").bytes())
    world.images.image("elsewhere", "1", [layer])
    world.open.redirects[layer["digest"]] = "http://169.254.169.254/latest/meta-data"
    assert (
        "at an address that is not for builds: 169.254.169.254:80" in world.build("else", "elsewhere:1").error
    )


def test_content_that_is_not_its_digest_is_refused(world: World) -> None:
    layer = world.images.layer(Tar().add("x", b"changed").bytes())
    world.images.image("changed", "1", [layer])
    world.images.blobs[layer["digest"]] = world.images.blobs[layer["digest"]][:-1] + b"!"
    assert "is not what its digests say" in world.build("changed", "changed:1").error


def test_an_image_that_is_too_large_is_refused_before_and_while_it_is_fetched(world: World) -> None:
    layer = world.images.layer(b"\0" * 1024)
    world.images.image("large", "said", [{**layer, "size": 65 << 20}])
    assert "of at most 64" in world.build("large", "large:said").error
    lying = world.images.blob(b"x" * (66 << 20), "application/vnd.oci.image.layer.v1.tar")
    world.images.image("large", "lies", [{**lying, "size": 1000}])
    built = world.build("large", "large:lies")
    assert "larger than it may be: more than 64 MiB" in built.error, built


HOSTILE: list[tuple[str, bytes, str]] = [
    ("up", Tar().add("../../canary", b"x").bytes(), "a name that leads out"),
    ("middle", Tar().add("a/../../canary", b"x").bytes(), "a name that leads out"),
    ("hard-link-up", Tar().add("x", type=b"1", linkname="../../../etc/shadow").bytes(), "leads out"),
    ("hard-link-proc", Tar().add("x", type=b"1", linkname="proc/self/mounts").bytes(), "cannot unpack"),
    ("link-to-folder", Tar().add("x", type=b"1", linkname="etc").bytes(), "links to a folder"),
    ("hides-up", Tar().add("etc/.wh...").bytes(), "hides what has no name"),
    ("hides-nothing", Tar().add("etc/.wh.").bytes(), "hides what has no name"),
    ("owner", Tar().add("x", b"", uid=1_000_000).bytes(), "a file of 1000000:0"),
    ("no-archive", b"this is no archive" * 100, "cannot unpack"),
    ("cut", Tar().add("x", b"x" * 5000).bytes()[:2000], "cannot unpack"),
]


@pytest.mark.parametrize(("name", "archive", "why"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_a_hostile_layer_is_refused(world: World, name: str, archive: bytes, why: str) -> None:
    """A clean failure of the step `base`, whatever stands in the archive, and nothing left of it."""
    layers = [world.images.layer(small_roots.alpine_like()), world.images.layer(archive)]
    world.images.image("hostile", name, layers)
    built = world.build("hostile", f"hostile:{name}")
    assert why in built.error, built
    assert built.step == "base"


def test_a_huge_file_is_refused_by_what_it_says(world: World) -> None:
    member = Tar().add("x", b"").bytes()
    size = b"\x80" + (1 << 50).to_bytes(11, "big")  # base 256, as GNU tar has large numbers
    header = bytearray(member[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    layers = [world.images.layer(small_roots.alpine_like()), world.images.layer(bytes(header) + member[512:])]
    world.images.image("hostile", "huge", layers)
    assert "holds more than" in world.build("hostile", "hostile:huge").error


def test_what_is_strange_in_a_layer_stays_in_its_root(world: World, said: Said) -> None:
    """Absolute names, links that lead up, devices, files below /proc: in the sandbox, or nowhere."""
    canary = Path("/cloche-canary-of-images")
    strange = (
        Tar().add(str(canary), b"inside").link("up", "../../../../../..").add("up/cloche-canary-two", b"in")
    )
    strange.add("dev/mem", type=b"3", devmajor=1, devminor=1).add(
        "etc/null", type=b"3", devmajor=1, devminor=3
    )
    strange.add("proc/sys/kernel/core_pattern", b"|/bin/x").add("sys/x", b"x").add(".cloche/agent.pyz", b"x")
    strange.add("usr/bin/root-id", b"x", 0o4755).add("pipe", type=b"6")
    layers = [world.images.layer(part) for part in (small_roots.alpine_like(), strange.bytes())]
    world.images.image("hostile", "strange", layers)
    built = world.build("strange", "hostile:strange")
    assert built.is_ready, built
    assert (
        said("strange", f"cat {canary} /cloche-canary-two; stat -c %a /usr/bin/root-id") == "insidein4755\n"
    )
    assert "No such" in said("strange", "ls -l /etc/null 2>&1; true")
    assert not canary.exists()
    assert not Path("/cloche-canary-two").exists()


DOCKERFILE = """FROM {host}/alpine:3 AS build
RUN of-musl >/code/made && ln -s made /code/link
FROM {base}
WORKDIR /srv/deep
COPY --from=build --chown=65532:65532 /code /srv/code
COPY --from={host}/alpine:3 /usr/bin/of-musl /usr/bin/
COPY --chmod=600 file .
ENV A=b
USER worker
"""


@pytest.mark.parametrize("base", ["distroless:1", "scratch"])
def test_a_dockerfile_on_an_image_without_a_shell(world: World, tmp_path: Path, base: str) -> None:
    """Its common use: what another stage has made, and files of the context; nothing of the image is run."""
    base = base if base == "scratch" else f"{world.open.host}/{base}"
    (tmp_path / "file").write_text("of the context")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.format(host=world.open.host, base=base))
    argv = [sys.executable, "-m", "cloche_server.cli.main", "template", "build", str(tmp_path)]
    argv += ["--name", "shell-less", "--state", str(world.server.state)]
    env = os.environ | {"CLOCHE_TEMPLATES": str(world.server.templates)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with world.sandbox("shell-less") as sandbox:
        assert sandbox.files.read("/srv/code/made") == "of musl\n"
        assert sandbox.files.read("/srv/code/link") == "of musl\n"
        assert sandbox.files.get_info("/srv/code/made").owner in {"nonroot", "65532"}
        found = sandbox.files.get_info("/srv/deep/file")
        assert (found.mode & 0o777, found.owner) == (0o600, "root")
        assert [entry.name for entry in sandbox.files.list("/home/worker")] == []
