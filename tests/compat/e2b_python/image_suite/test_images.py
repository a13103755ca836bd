"""The official builder's templates of images: pulled from the registry that `TEST_REGISTRY` names."""

import os
import uuid

import pytest

from e2b import Template
from e2b.exceptions import BuildException, SandboxException
from e2b_code_interpreter import Sandbox

OPEN, CLOSED = os.environ.get("TEST_REGISTRY", ""), os.environ.get("TEST_CLOSED_REGISTRY", "")
PASSWORD = os.environ.get("TEST_REGISTRY_PASSWORD", "")


def new_name() -> str:
    return f"image-{uuid.uuid4().hex[:12]}"


def test_a_musl_image_runs_commands_and_files() -> None:
    name = new_name()
    template = Template().from_image(f"{OPEN}/alpine:3").run_cmd("of-musl > /code/made").set_envs({"A": "b"})
    Template.build(template, name, memory_mb=512)
    with Sandbox.create(template=name) as sandbox:
        assert (
            sandbox.commands.run("cat /code/made; whoami; echo $A $FLAVOUR").stdout
            == "of musl\nuser\nb musl\n"
        )
        sandbox.files.write("/home/user/a/file", "content")
        assert sandbox.files.read("/home/user/a/file") == "content"
        assert [entry.name for entry in sandbox.files.list("/home/user")] == ["a"]
        assert sandbox.commands.run("cat a/file").stdout == "content"
        with pytest.raises(SandboxException, match="needs python3 and IPython"):
            sandbox.run_code("1 + 1")


def test_a_terminal_on_a_musl_image() -> None:
    name = new_name()
    Template.build(Template().from_image(f"{OPEN}/alpine:3"), name, memory_mb=512)
    with Sandbox.create(template=name) as sandbox:
        from e2b import PtySize

        said: list[bytes] = []
        terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
        sandbox.pty.send_stdin(terminal.pid, b"of-musl; exit\n")
        terminal.wait(on_pty=said.append)
        assert b"of musl" in b"".join(said)


def test_an_image_without_a_shell_has_files() -> None:
    name = new_name()
    Template.build(Template().from_image(f"{OPEN}/distroless:1"), name, memory_mb=512)
    with Sandbox.create(template=name) as sandbox:
        sandbox.files.write("/home/user/file", "content")
        assert sandbox.files.read("/home/user/file") == "content"
        with pytest.raises(SandboxException, match="cannot execute '/bin/bash'"):
            sandbox.commands.run("true")


def test_a_private_image_by_its_credentials() -> None:
    template = Template().from_image(f"{CLOSED}/alpine:3", username="robot", password=PASSWORD)
    Template.build(template, new_name(), memory_mb=512)
    with pytest.raises(BuildException, match="does not open image"):
        Template.build(Template().from_image(f"{CLOSED}/alpine:3"), new_name(), memory_mb=512)


def test_what_is_not_there_fails_the_base() -> None:
    for image, why in (
        (f"{OPEN}/nothing:1", "no such image"),
        ("ubuntu-of-nowhere.invalid/ubuntu:22.04", "cannot be reached"),
    ):
        with pytest.raises(BuildException, match=why):
            Template.build(Template().from_image(image), new_name(), memory_mb=512)


def test_credentials_of_amazon_say_what_to_do() -> None:
    template = Template().from_aws_registry(
        "1.dkr.ecr.eu-west-1.amazonaws.com/a:1", "key", "secret", "eu-west-1"
    )
    with pytest.raises(BuildException, match="get-login-password"):
        Template.build(template, new_name(), memory_mb=512)
