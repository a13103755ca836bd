"""The official builder's templates: described in Python, built by the server, sandboxes made of them."""

import asyncio
import uuid
from pathlib import Path

import pytest

from e2b import AsyncTemplate, Template, wait_for_file
from e2b.exceptions import BuildException, SandboxException
from e2b_code_interpreter import Sandbox


def new_name() -> str:
    return f"compat-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "app" / "sub").mkdir(parents=True)
    (tmp_path / "app" / "main.py").write_text("print('from a file')\n")
    (tmp_path / "app" / "sub" / "data.txt").write_text("deep")
    (tmp_path / "app" / "link").symlink_to("main.py")
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho ran\n")
    return tmp_path


def test_a_template_is_built_and_its_sandboxes_have_what_it_says(context: Path) -> None:
    name = new_name()
    template = (
        Template(file_context_path=context)
        .from_base_image()
        .set_envs({"GREETING": "hello"})
        .set_envs({"TOGETHER": "$GREETING you"})
        .copy("app", "/srv/app")
        .copy("run.sh", "/usr/local/bin/run", user="root", mode=0o755)
        .set_workdir("/project/deep")
        .run_cmd("echo made > ../made.txt")
        .run_cmd(["echo one", "echo two > /tmp/two"], user="root")
        .make_symlink("/project/made.txt", "again.txt")
    )
    logs: list[str] = []
    built = Template.build(
        template, name, cpu_count=1, memory_mb=512, on_build_logs=lambda e: logs.append(str(e))
    )
    try:
        assert any("Build finished" in line for line in logs)
        with Sandbox.create(template=name) as sandbox:
            info = sandbox.get_info()
            assert (info.template_id, info.cpu_count, info.memory_mb) == (built.template_id, 1, 512)
            assert sandbox.commands.run("pwd; whoami; run").stdout == "/project/deep\nuser\nran\n"
            assert sandbox.commands.run("echo $TOGETHER").stdout == "hello you\n"
            assert sandbox.files.read("/project/deep/again.txt") == "made\n"
            assert sandbox.files.read("/srv/app/sub/data.txt") == "deep"
            assert sandbox.commands.run("python3 /srv/app/link").stdout == "from a file\n"
            owners = sandbox.commands.run("stat -c %U /srv/app/main.py /usr/local/bin/run ../made.txt").stdout
            assert owners.split() == ["user", "root", "user"]
            assert sandbox.run_code("len(open('/project/made.txt').read())").text == "5"
    finally:
        assert Template.exists(name)


def test_steps_without_a_working_directory_are_at_home(context: Path) -> None:
    template = (
        Template(file_context_path=context)
        .from_base_image()
        .skip_cache()
        .copy("app/*", "copied")
        .run_cmd('grep -q "from a file" copied/main.py && test "$PWD" = /home/user')
        .run_cmd('test "$PWD" = /root', user="root")
        .run_cmd('test "$PWD" = /', user="nobody")
        .make_symlink(".bashrc", ".bashrc.local")
    )
    Template.build(template, new_name())


@pytest.mark.parametrize(
    ("describe", "method"),
    [
        (lambda t: t.from_template("no-such-template"), "from_template"),
        (lambda t: t.from_image("e2b.dev/this-image-does-not-exist"), "from_image"),
        (lambda t: t.from_base_image().run_cmd("true").run_cmd("cat /no/such"), "run_cmd"),
        (lambda t: t.from_base_image().run_cmd("true").rename("/no/such", "/tmp/x"), "rename"),
        (lambda t: t.from_base_image().set_user("root").set_workdir("/root/.bashrc"), "set_workdir"),
        (lambda t: t.from_base_image().set_start_cmd("exit 3", wait_for_file("/never")), "set_start_cmd"),
    ],
)
def test_a_failed_step_is_the_line_that_described_it(describe, method: str) -> None:  # noqa: ANN001
    template = describe(Template())
    with pytest.raises(BuildException) as raised:
        Template.build(template, new_name())
    lines = [str(entry.statement) for entry in raised.traceback if entry.path == Path(__file__)]
    assert any(f".{method}(" in line for line in lines), raised.value


def test_builds_in_the_background_are_followed_by_their_status() -> None:
    name = new_name()
    built = Template.build_in_background(Template().from_base_image().run_cmd("sleep 3; echo late"), name)
    status = Template.get_build_status(built)
    assert status.status.value in ("waiting", "building")

    async def follow() -> list[str]:
        lines: list[str] = []
        while True:
            found = await AsyncTemplate.get_build_status(built, logs_offset=len(lines))
            lines += [entry.message for entry in found.log_entries]
            if found.status.value in ("ready", "error") and not found.log_entries:
                assert found.status.value == "ready"
                return lines
            await asyncio.sleep(0.1)

    assert "late" in asyncio.run(follow())


def test_tags_lead_to_builds() -> None:
    name = new_name()
    first = Template.build(Template().from_base_image().run_cmd("echo 1 > /home/user/v"), f"{name}:v1")
    second = Template.build(Template().from_base_image().run_cmd("echo 2 > /home/user/v"), f"{name}:v2")
    assert first.template_id == second.template_id
    assert Template.assign_tags(f"{name}:v1", ["stable", "default"]).build_id == first.build_id
    tags = {tag.tag: tag.build_id for tag in Template.get_tags(name)}
    assert tags == {
        "v1": first.build_id, "v2": second.build_id, "stable": first.build_id, "default": first.build_id,
    }  # fmt: skip
    for reference, version in ((f"{name}:v2", "2"), (name, "1"), (f"{name}:stable", "1")):
        with Sandbox.create(template=reference) as sandbox:
            assert sandbox.files.read("/home/user/v").strip() == version
    Template.remove_tags(name, "stable")
    with pytest.raises(SandboxException, match="404"):
        Sandbox.create(template=f"{name}:stable")


def test_what_is_known_does_not_run_again(context: Path) -> None:
    name = new_name()

    def stamp() -> str:
        template = (
            Template(file_context_path=context)
            .from_base_image()
            .copy("run.sh", "run.sh")
            .run_cmd(f"date +%N > /home/user/stamp; : {name}")
        )
        Template.build(template, name)
        with Sandbox.create(template=name) as sandbox:
            return sandbox.files.read("/home/user/stamp")

    first = stamp()
    assert stamp() == first
    (context / "run.sh").write_text("changed")
    assert stamp() != first
