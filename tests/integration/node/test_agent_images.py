"""What sandboxes of builds go on from: one image of an agent alone, over whatever root a step has."""

import asyncio
import hashlib
import re
from pathlib import Path

import msgspec
import pytest
from tests.integration.node.building import Build, building, layer_files
from tests.integration.node.conftest import NEEDS_A_NODE, NEEDS_GVISOR, NodeProcess
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE, NEEDS_GVISOR]

BOOT_ID = "/proc/sys/kernel/random/boot_id"
NAME = "import socket as s; print(s.gethostname(), s.gethostbyname(s.gethostname()))"
RANDOM = (
    "import os, uuid, tempfile, random; "
    "print(os.urandom(16).hex(), uuid.uuid4(), tempfile.mktemp(), random.random())"
)


def images(node: NodeProcess) -> list[Path]:
    return [path for path in node.state.glob("images/agent-*") if path.suffix != ".new"]


def opened(node: NodeProcess) -> list[bool]:
    """Of each sandbox of a build that has come up, whether it went on from an image."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", node.log.read_text())
    lines = [line for line in plain.splitlines() if "build.opened" in line]
    return [re.search(r"goes_on\W+true", line, re.IGNORECASE) is not None for line in lines]


async def with_image(node: NodeProcess) -> Path:
    """Open a build, which has the image made beside it."""
    async with building(node) as build:
        assert (await build.run("/bin/true")).status == 0
        await asyncio.to_thread(until, lambda: images(node) != [], within_s=30, what="an image")
    (image,) = images(node)
    return image


async def seen(build: Build) -> dict[str, list[str]]:
    """What a program in it can tell it from others by."""
    commands = {
        "random": ("python3", "-c", RANDOM),
        "boot": ("cat", BOOT_ID),
        "id": ("sh", "-c", "echo $E2B_SANDBOX_ID"),
    }
    return {name: (await build.run(*argv)).stdout for name, argv in commands.items()}


async def test_steps_go_on_from_an_agent_over_their_own_roots(gvisor_node: NodeProcess) -> None:
    """Files above, below and beside, and what a step writes is a layer with nothing else in it."""
    await with_image(gvisor_node)
    script = "echo x >/made; rm /etc/motd; mkdir -p /at-the-top/deep; echo y >/at-the-top/deep/file"
    async with building(gvisor_node) as build:
        assert await build.shell(script) == (0, [], [])
        layer = await build.commit()
    files = layer_files(gvisor_node, layer)
    assert (files / "made").read_text() == "x\n"
    assert not (files / "etc" / "hosts").exists()
    assert list(files.glob("tmp/*")) == []
    async with building(gvisor_node, layer.layer_id) as build:
        ran = await build.shell(
            "cat /made /at-the-top/deep/file; test ! -e /etc/motd; stat -c '%a %U' / /tmp; ls /tmp; id -un",
            user="user",
        )
        assert ran == (0, ["x", "y", "755 root", "1777 root", "user"], [])
        ran = await build.shell("sudo -n id -un; ls -d /usr /home /var", user="user")
        assert ran == (0, ["root", "/home", "/usr", "/var"], [])
        again = await build.commit()
    names = {path.name for path in layer_files(gvisor_node, again).iterdir()} if again.layer_id else set()
    assert "made" not in names
    assert opened(gvisor_node) == [False, True, True]


async def test_two_sandboxes_of_one_image_have_nothing_in_common(gvisor_node: NodeProcess) -> None:
    """Randomness and the id of the boot are each one's own; the name is that of all builds, and resolves."""
    await with_image(gvisor_node)
    async with building(gvisor_node) as first, building(gvisor_node) as second:
        one, other = await seen(first), await seen(second)
        resolves = await first.run("python3", "-c", NAME)
    assert opened(gvisor_node)[-2:] == [True, True]
    assert {name: one[name] for name in one if one[name] == other[name]} == {}
    assert resolves == (0, ["build 127.0.1.1"], [])
    assert all(value for value in one.values())


@pytest.mark.parametrize("file", ["checkpoint.img", "pages.img", "manifest"])
async def test_a_damaged_image_is_not_used_and_made_again(gvisor_node: NodeProcess, file: str) -> None:
    """The next start of the node reads all of it before anything goes on from it."""
    image = await with_image(gvisor_node)
    gvisor_node.kill()
    content = bytearray((image / file).read_bytes())
    content[len(content) // 2] ^= 1
    (image / file).write_bytes(content)
    gvisor_node.start()
    await with_image(gvisor_node)
    async with building(gvisor_node):
        pass
    assert opened(gvisor_node) == [False, False, True]


async def test_an_image_that_does_not_come_up_is_not_used_and_made_again(gvisor_node: NodeProcess) -> None:
    """Its bytes are what was written, and this machine can do nothing with them."""
    image = await with_image(gvisor_node)
    gvisor_node.kill()
    _, _, content = (image / "manifest").read_bytes().partition(b"\n")
    manifest = msgspec.json.decode(content)
    (image / "checkpoint.img").write_bytes(b"another")
    digest = hashlib.sha256(b"another").hexdigest()
    manifest["files"]["checkpoint.img"] = {"size": 7, "sha256": digest, "piece_bytes": 0}
    content = msgspec.json.encode(manifest)
    (image / "manifest").write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    gvisor_node.start()
    async with building(gvisor_node) as build:
        assert (await build.run("/bin/true")).status == 0
    await with_image(gvisor_node)
    async with building(gvisor_node):
        pass
    assert opened(gvisor_node) == [False, False, False, True]


@pytest.mark.parametrize("point", ["gvisor.start:2", "gvisor.save:1", "images.commit:1"])
async def test_a_node_killed_while_the_image_is_made_leaves_nothing_of_it(
    gvisor_node: NodeProcess, point: str
) -> None:
    """The build ends with the node, as ever; the next one has the image made."""
    gvisor_node.kill()
    gvisor_node.start(point)
    gvisor_node.arm()
    with pytest.raises(Exception):  # noqa: B017, PT011 - however the link breaks off
        async with building(gvisor_node) as build:
            await build.run("/bin/sleep", "60")
    assert gvisor_node.wait() != 0
    gvisor_node.start()
    left = [path.name for path in gvisor_node.state.glob("images/*") if path.suffix == ".new"]
    assert left == []
    await with_image(gvisor_node)


@pytest.mark.parametrize(
    "change",
    ["rm -rf /tmp && ln -s /var /tmp", "rm -rf /tmp", "mkdir -m 700 /sys2"],
)
async def test_over_any_root_a_step_comes_up(gvisor_node: NodeProcess, change: str) -> None:
    """Where the image does not fit, the sandbox is started."""
    await with_image(gvisor_node)
    async with building(gvisor_node) as build:
        assert (await build.shell(change)).status == 0
        layer = await build.commit()
    async with building(gvisor_node, layer.layer_id) as build:
        assert await build.shell("cat /etc/hostname >/dev/null; echo up") == (0, ["up"], [])
    assert opened(gvisor_node) == [False, True, "/tmp" not in change]
