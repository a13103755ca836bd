"""Steps of builds in sandboxes: what they may, what is kept of them, and what is left when one is cut off."""

import asyncio
import gzip
import json
import tarfile
from collections.abc import Iterator
from contextlib import aclosing

import msgspec
import pytest
from tests.integration.node.building import Archive, building, layer_files
from tests.integration.node.conftest import NEEDS_A_NODE, NEEDS_GVISOR, NodeProcess, newest_build
from tests.support import capabilities
from tests.support.waiting import until

from cloche_server import link
from cloche_server.config import Builds
from cloche_server.node import build_messages as messages
from cloche_server.node.build_messages import PutInBuild
from cloche_wire.errors import (
    ClocheError,
    DeadlineExceeded,
    InvalidArgument,
    NotEnoughSpace,
    NotFound,
    SandboxNotFound,
    TooLarge,
    Unauthenticated,
)

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE]

DIRECTORY, LINK, HARD_LINK, DEVICE, PIPE = (
    tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip


BUILD_ID = "0a0a0a0a-0000-4000-8000-000000000001"


def left(node: NodeProcess) -> list[str]:
    """What of builds is there: sandboxes, records, layers that are half made, uploads that are unpacked."""
    found = [
        *node.state.glob("sandboxes/*"),
        *node.state.glob("node/journal/*"),
        *node.state.glob("layers/*.new"),
    ]
    return [path.name for path in found]


def await_nothing(node: NodeProcess) -> None:
    """Links end a moment after their blocks, and folders go off the path of requests."""
    until(lambda: left(node) == [], within_s=10, what="nothing left")


async def test_what_a_step_writes_is_a_layer_that_the_next_one_stands_on(node: NodeProcess) -> None:
    """Lines, exit status, files, and nothing of the node's own in the layer."""
    async with building(node) as build:
        ran = await build.shell(
            "echo out; echo err >&2; printf unfinished; echo x >/made; rm /etc/motd", env={"A": "1"}
        )
        assert ran == (0, ["out", "unfinished"], ["err"])
        assert (await build.shell("exit 7")).status == 7
        layer = await build.commit()
    assert (layer.team_id, layer.entries > 0, layer.size_bytes > 0) == ("team", True, True)
    files = layer_files(node, layer)
    assert (files / "made").read_text() == "x\n"
    assert (files / "made").stat().st_uid == 0
    assert not (files / "etc" / "hosts").exists()
    async with building(node, layer.layer_id) as build:
        ran = await build.shell("cat /made; id -un; pwd; test ! -e /etc/motd", user="user", workdir="/tmp")
        assert ran.stdout == ["x", "user", "/tmp"]
    await_nothing(node)


@NEEDS_GVISOR
async def test_on_gvisor_what_a_step_writes_is_a_layer_too(gvisor_node: NodeProcess) -> None:
    """Also what it has mapped, and what no program has closed."""
    code = "import mmap; f = open('/mapped', 'w+b'); f.truncate(8192); "
    code += "m = mmap.mmap(f.fileno(), 8192); m[:4] = b'here'"
    async with building(gvisor_node) as build:
        assert (await build.shell("echo x >/made; chown user /made; rm /etc/motd; mkdir -p /a/b")).status == 0
        assert (await build.run("python3", "-c", code)).status == 0
        layer = await build.commit()
    files = layer_files(gvisor_node, layer)
    assert (files / "mapped").read_bytes()[:4] == b"here"
    async with building(gvisor_node, layer.layer_id) as build:
        ran = await build.shell("cat /made; stat -c %U /made; head -c 4 /mapped; test ! -e /etc/motd")
        assert ran == (0, ["x", "user", "here"], [])


async def test_nothing_changed_is_no_layer(node: NodeProcess) -> None:
    """And the sandbox is gone all the same."""
    async with building(node) as build:
        assert (await build.run("/bin/true")).status == 0
        assert (await build.commit()).layer_id == ""
        with pytest.raises(SandboxNotFound):
            await build.run("/bin/true")
    await_nothing(node)


async def test_nobody_else_sees_a_build(node: NodeProcess) -> None:
    """It is on no list, no client's call reaches it, and no route leads to it."""
    async with building(node) as build:
        assert await node.alive() == set()
        with pytest.raises(SandboxNotFound):
            await node.end(build.sandbox_id)
        with pytest.raises(SandboxNotFound):
            await node.dial(build.sandbox_id, 80)


@pytest.mark.parametrize(
    ("argv", "changes", "error"),
    [
        (("/bin/sh", "-c", "yes"), {"max_output_bytes": 1 << 20}, TooLarge),
        (("/bin/sleep", "60"), {"timeout_s": 0.5}, DeadlineExceeded),
        (("/bin/true",), {"user": "nobody-of-that-name"}, Unauthenticated),
    ],
)
async def test_a_command_that_may_not_go_on_ends_the_sandbox(
    node: NodeProcess, argv: tuple[str, ...], changes: dict[str, object], error: type[ClocheError]
) -> None:
    """Typed, also in the middle of the output, and nothing is left."""
    async with building(node) as build:
        with pytest.raises(error):
            await build.run(*argv, **changes)
    await_nothing(node)


async def test_a_very_long_line_comes_in_pieces(node: NodeProcess) -> None:
    """The node keeps no more of a line than it shows at once."""
    async with building(node) as build:
        ran = await build.run("python3", "-c", "print('x' * 100_000)")
    assert "".join(ran.stdout) == "x" * 100_000
    assert max(map(len, ran.stdout)) <= 1 << 17


async def test_a_build_ends_with_its_link(node: NodeProcess) -> None:
    """In the middle of a command: an api that was killed leaves nothing."""
    async with building(node) as build:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await build.run("/bin/sleep", "600")
    await_nothing(node)


async def test_a_killed_node_leaves_nothing_of_a_build(own_node: NodeProcess) -> None:
    """Its next start ends the sandbox; layers that were complete stay."""
    async with building(own_node) as build:
        await build.shell("echo x >/made")
        layer = await build.commit()
    async with building(own_node, layer.layer_id) as build:
        own_node.kill()
        with pytest.raises(ClocheError):
            await build.run("/bin/true")
    (own_node.state / "layers" / f"layer-{'0' * 32}.new" / "fs").mkdir(parents=True)
    own_node.start()
    await_nothing(own_node)
    async with building(own_node, layer.layer_id) as build:
        assert (await build.shell("cat /made")).stdout == ["x"]


def with_limits(node: NodeProcess, **limits: int) -> None:
    """Have a node be started anew with these settings of builds."""
    node.kill()
    node.config = msgspec.structs.replace(node.config, builds=Builds(**limits))
    node.start()


@pytest.mark.parametrize("kind", ["container", pytest.param("gvisor", marks=NEEDS_GVISOR)])
@pytest.mark.parametrize(
    ("limits", "script", "error"),
    [
        ({"max_layer_mib": 32}, "head -c 64M /dev/zero >/big; sleep 60", TooLarge),
        ({"max_layer_files": 500}, "for n in $(seq 1000); do echo >/home/$n; done; sleep 60", TooLarge),
        ({"step_timeout_s": 2}, "sleep 60", DeadlineExceeded),
        ({"min_free_mib": 1 << 30}, "sleep 60", NotEnoughSpace),
    ],
)
async def test_a_step_that_takes_more_than_it_may_is_ended_while_it_runs(
    request: pytest.FixtureRequest,
    kind: str,
    limits: dict[str, int],
    script: str,
    error: type[ClocheError],
) -> None:
    """Bytes, files, time and free disk; typed, and nothing of it is left."""
    node = request.getfixturevalue("own_node" if kind == "container" else "gvisor_node")
    with_limits(node, **limits)
    with pytest.raises(error):
        async with building(node) as build:
            await build.shell(script)
    await_nothing(node)
    assert list((node.state / "layers").iterdir()) == []


async def test_what_is_left_of_a_step_is_counted_again(own_node: NodeProcess) -> None:
    """What ended before anybody looked is no layer either."""
    with_limits(own_node, max_layer_mib=1)
    async with building(own_node) as build:
        assert (await build.shell("head -c 3M /dev/zero >/big")).status == 0
        with pytest.raises(TooLarge, match="3 MiB"):
            await build.commit()
    await_nothing(own_node)
    assert list((own_node.state / "layers").iterdir()) == []


async def test_what_was_written_and_is_gone_again_does_not_count(own_node: NodeProcess) -> None:
    """Steps unpack, build and clean up: what counts is what is there when somebody looks."""
    with_limits(own_node, max_layer_mib=32)
    async with building(own_node) as build:
        script = "for n in 1 2 3 4; do head -c 20M /dev/zero >/big; sleep 0.7; rm /big; done; echo done"
        assert (await build.shell(script)).stdout == ["done"]


async def test_nothing_is_started_over_layers_that_are_not_there(node: NodeProcess) -> None:
    """Whatever their names lead to."""
    for name in (f"layer-{'a' * 32}", "layer-../../templates", "..", "nobody"):
        with pytest.raises(NotFound):
            async with building(node, name):
                pass
    await_nothing(node)


# --- what is put into them


async def test_files_are_put_where_they_belong(node: NodeProcess) -> None:
    """A folder's content into the target, a file under the target's name; owner, mode, merged folders."""
    tree = (
        Archive()
        .add("app", type=DIRECTORY, mode=0o755)
        .add("app/one", b"1", mode=0o4640)
        .add("app/sub/two", b"2")
    )
    tree.add("app/link", type=LINK, linkname="/etc/passwd").add("file", b"f", mode=0o600)
    async with building(node) as build:
        await build.put(tree.bytes(), "app", "/srv/app", owner="user:user")
        await build.put(tree.bytes(), "file", "/srv/named", owner="0:0", mode="0755")
        await build.put(tree.bytes(), "file", "/srv/folder/", owner="root:root")
        await build.put(tree.bytes(), "app", "/srv/app/")
        shown = "stat -c '%n %U %a' app/one named folder/file; readlink app/link; cat app/sub/two; echo"
        ran = await build.shell(f"cd /srv; {shown}; ls -a /")
    assert ran.stdout[:5] == [
        "app/one root 640",
        "named root 755",
        "folder/file root 600",
        "/etc/passwd",
        "2",
    ]
    assert not [line for line in ran.stdout if ".cloche-" in line]


def corpus() -> Iterator[object]:
    """Security specification, test 75."""
    into = {"type": LINK, "linkname": "/root"}
    yield pytest.param(Archive().add("x").add("../escaped", b"e"), id="dots")
    yield pytest.param(Archive().add("x").add("a/../../../escaped", b"e"), id="dots-inside")
    yield pytest.param(Archive().add("x").add("to", **into).add("to/escaped", b"e"), id="through-a-link")
    up = {"type": LINK, "linkname": ".."}
    yield pytest.param(Archive().add("x").add("up", **up).add("up/../escaped", b"e"), id="through-a-link-up")
    hard = {"type": HARD_LINK, "linkname": "/etc/shadow"}
    yield pytest.param(Archive().add("x").add("shadow", **hard), id="hard-link-to-outside")
    yield pytest.param(
        Archive().add("x").add("deep/link", type=LINK, linkname="../../../etc/shadow")
        .add("shallow", type=HARD_LINK, linkname="deep/link").add("shallow", b"written"),
        id="hard-link-to-a-link",
    )  # fmt: skip
    yield pytest.param(Archive().add("x").add("device", type=DEVICE, devmajor=1, devminor=1), id="device")
    yield pytest.param(Archive().add("x").add("pipe", type=PIPE), id="pipe")
    headers = {"pax_headers": {"size": "-1"}}
    yield pytest.param(
        Archive(format=tarfile.PAX_FORMAT).add("x").add("negative", **headers), id="negative-size"
    )
    huge = {"pax_headers": {"size": str(1 << 62)}}
    yield pytest.param(Archive(format=tarfile.PAX_FORMAT).add("x").add("huge", **huge), id="huge-size")
    yield pytest.param(Archive().add("x" * 5000 + "/" + "y" * 5000), id="long-name")


@pytest.mark.parametrize("archive", list(corpus()))
async def test_hostile_archives_are_refused_or_stay_inside(node: NodeProcess, archive: Archive) -> None:
    """Typed, or contained: nothing is outside of the target, on the host or in the sandbox."""
    async with building(node) as build:
        before = (await build.shell("sha256sum /etc/shadow")).stdout
        with pytest.raises((InvalidArgument, TooLarge)):
            await build.put(archive.bytes(), ".", "/srv/target")
        ran = await build.shell(
            "sha256sum /etc/shadow; find / -xdev -name 'escaped*' -o -xdev -name '.cloche-*'"
        )
        assert [line for line in ran.stdout if line != "/.cloche"] == before


async def test_setuid_bits_of_archives_are_dropped(node: NodeProcess) -> None:
    """Whoever may give files to a build gives programs no rights that its steps have not given."""
    archive = Archive().add("program", b"#!/bin/sh\n", mode=0o6755).bytes()
    async with building(node) as build:
        await build.put(archive, "program", "/program", owner="root:root")
        assert (await build.shell("stat -c %a /program")).stdout == ["755"]


async def test_a_small_archive_of_10_gib_of_zeros_is_refused_before_it_is_unpacked(node: NodeProcess) -> None:
    """By what it says of itself, and by what it is, and no disk is filled."""
    member = tarfile.TarInfo("zeros")
    member.size = 11 << 30
    head = member.tobuf()
    async with building(node) as build:
        with pytest.raises(TooLarge):
            await build.put(gzip.compress(head + bytes(64 << 20)), "zeros", "/zeros")
        with pytest.raises(InvalidArgument):  # it ends before it has given what it says
            await build.put(gzip.compress(head + bytes(1 << 20)), "zeros", "/zeros", max_bytes=1 << 40)
        ran = await build.shell(
            "ls / | grep -c zeros || true; du -sm --exclude=/proc --exclude=/sys / | cut -f1"
        )
        assert ran.stdout[0] == "0"


async def test_too_many_entries_are_refused(node: NodeProcess) -> None:
    """Before they are all there."""
    archive = Archive()
    for number in range(2000):
        archive.add(f"file-{number}")
    async with building(node) as build:
        with pytest.raises(TooLarge):
            await build.put(archive.bytes(), ".", "/many", max_entries=1000)
        assert (await build.shell("test -e /many || echo none")).stdout == ["none"]


@pytest.mark.parametrize("name", ["../node/journal", "/etc/passwd", "team/link", "team", "team/none", "\0"])
async def test_uploads_are_files_of_their_folder(node: NodeProcess, name: str) -> None:
    """What the api's user puts there leads the node nowhere else."""
    folder = node.config.uploads_dir / "team"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to("/etc/passwd")
    async with building(node) as build:
        with pytest.raises(NotFound):
            await node.call("build_put", PutInBuild(build.sandbox_id, name, ".", "/x"))


# --- what becomes of them


def with_own_templates(node: NodeProcess) -> None:
    """Have a node use a folder of templates that a test may write to."""
    templates = node.state / "templates"
    base = templates / newest_build()
    base.mkdir(parents=True)
    found = json.loads((capabilities.templates_folder() / newest_build() / "manifest.json").read_text())
    found["rootfs"] = str(capabilities.templates_folder() / newest_build() / found["rootfs"])
    (base / "manifest.json").write_text(json.dumps(found))
    node.kill()
    node.config = msgspec.structs.replace(node.config, templates=str(templates))
    node.start()


async def publish(node: NodeProcess, *layers: str, **fields: object) -> list[str]:
    """Publish a build; what its start command has said."""
    manifest = {"build_id": BUILD_ID, "rootfs": "rootfs", "layers": [*layers, newest_build()], **fields}
    request = messages.PublishBuild("team", msgspec.Raw(json.dumps(manifest).encode()), ready_timeout_s=20)
    feed = link.subscribe(node.config.node_socket, "publish", dict, request)
    async with aclosing(feed):
        events = [item async for item in feed if isinstance(item, tuple)]
    return [msgspec.json.decode(data, type=messages.BuildLine).text for _, data in events]


async def test_a_build_is_published_when_it_was_ready_and_not_before(own_node: NodeProcess) -> None:
    """One whose start command fails is none; of the other sandboxes are made, until it is taken away."""
    with_own_templates(own_node)
    async with building(own_node) as build:
        await build.shell("echo made >/made")
        layer = await build.commit()
    with pytest.raises(InvalidArgument, match="exit status 3"):
        await publish(own_node, layer.layer_id, start_cmd="exit 3", ready_cmd="false")
    assert not (own_node.state / "templates" / BUILD_ID).exists()
    start, ready = (
        "echo starts; touch /tmp/up; sleep 60",
        "test -e /tmp/again || { touch /tmp/again; exit 1; }",
    )
    ready += "; test -e /tmp/up && test -e /made"
    assert await publish(own_node, layer.layer_id, start_cmd=start, ready_cmd=ready) == ["starts"]
    await_nothing(own_node)
    sandbox_id = await own_node.create(build_id=BUILD_ID)
    pruning = messages.PruneLayers(older_than_s=0)
    assert (await own_node.call("prune_layers", pruning, messages.Pruned)).layers == []
    await own_node.call("unpublish", messages.RemoveBuild(BUILD_ID))
    assert (await own_node.call("prune_layers", pruning, messages.Pruned)).layers == []  # it stands on it
    await own_node.end(sandbox_id)
    assert [
        one.layer_id for one in (await own_node.call("prune_layers", pruning, messages.Pruned)).layers
    ] == [layer.layer_id]
    assert await own_node.call("layers", {}, list) == []
