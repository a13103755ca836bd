"""Files of real containers, paused, resumed and copied without memory: whatever is killed, they are there."""

import shutil
import signal

import pytest
from tests.integration.node.conftest import NEEDS_A_NODE, NEEDS_GVISOR, NodeProcess, healthy
from tests.integration.node.interpreting import Inside, flip, images, started
from tests.support import block

from cloche_server.ids import new_volume_id
from cloche_server.isolation import syscalls
from cloche_server.node import messages
from cloche_wire.errors import NotEnoughSpace, SnapshotUnusable, Unavailable, UnsupportedOption

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE]

PAUSE_POINTS = (
    "journal.write:1", "journal.write:2", "freeze:1", "layers.commit:1", "images.commit:1",
    "journal.write:3", "destroy:1", "network.remove:1",
)  # fmt: skip
RESUME_POINTS = (
    "slots.take:1", "journal.write:1", "network.create:1", "start:1", "journal.write:2",
    "initialize:1", "journal.write:3", "images.remove:1",
)  # fmt: skip
SNAPSHOT_POINTS = ("freeze:1", "journal.write:1", "layers.commit:1", "images.commit:1")
CHANGE = """
import os
os.makedirs("/home/user/made/deep", exist_ok=True)
open("/home/user/made/deep/file", "w").write("made")
os.symlink("/home/user/made", "/tmp/link")
open("/etc/motd", "w").write("changed")
os.remove("/etc/debian_version")
os.chmod("/home/user/made/deep/file", 0o600)
open("/etc/hosts", "a").write("10.0.0.1 mine")
x = 41
"""
LOOK = """
print(open("/tmp/link/deep/file").read(), open("/etc/motd").read(), os.path.exists("/etc/debian_version"),
      oct(os.stat("/tmp/link/deep/file").st_mode), "mine" in open("/etc/hosts").read(), "x" in globals())
"""
KEPT = "made changed False 0o100600 False False"


async def look(inside: Inside) -> str:
    return await inside.run("import os" + LOOK)


def layers(node: NodeProcess) -> set[str]:
    return {path.name for path in (node.state / "layers").iterdir()}


async def test_files_survive_a_pause_and_a_restart_and_processes_start_anew(own_node: NodeProcess) -> None:
    """Also changes below /etc, but for names that are the sandbox's own; nothing else is left meanwhile."""
    inside = await started(own_node)
    await inside.run(CHANGE)
    await inside.pause(memory=False)
    assert await inside.state() == "paused"
    block.await_nothing(block.number_of(own_node.state))
    own_node.kill()
    own_node.start()
    await inside.resume()
    assert await look(inside) == KEPT
    await inside.run("open('/tmp/second', 'w').write('2')")
    await inside.pause(memory=False)
    await inside.resume()
    assert await look(inside) == KEPT
    assert await inside.run("print(open('/tmp/second').read())") == "2"
    assert images(own_node) == set()
    await own_node.end(inside.sandbox_id)
    assert layers(own_node) == set()


async def test_memory_is_refused_with_the_name_of_the_isolation_that_can(own_node: NodeProcess) -> None:
    inside = await started(own_node)
    await inside.run("x = 41")
    with pytest.raises(UnsupportedOption, match="container") as told:
        await inside.pause()
    assert "gvisor" in (told.value.hint or "")
    assert await inside.run("print(x)") == "41"


async def test_copies_have_the_files_of_one_moment_and_go_their_own_ways(own_node: NodeProcess) -> None:
    """And copies of copies, while the source runs on with its variables."""
    source = await started(own_node)
    await source.run(CHANGE)
    order = messages.TakeSnapshot(source.sandbox_id, "s1", memory=False, for_now=True)
    taken = await own_node.call("snapshot", order, messages.SnapshotTaken)
    assert taken.stall_ms < 1000
    await source.run("open('/tmp/later', 'w').close()")
    copies = [await started(own_node, snapshot_id="s1") for _ in range(3)]
    await own_node.call("remove_snapshot", messages.RemoveSnapshot("s1"))
    for number, copy in enumerate(copies):
        assert await look(copy) == KEPT
        await copy.run(f"open('/tmp/mine', 'w').write('{number}')")
        assert await copy.run("print(os.path.exists('/tmp/later'))") == "False"
    assert await source.run("print(x)") == "41"
    order = messages.TakeSnapshot(copies[2].sandbox_id, "s2", memory=False)
    await own_node.call("snapshot", order, messages.SnapshotTaken)
    grandchild = await started(own_node, snapshot_id="s2")
    assert await look(grandchild) == KEPT
    assert await grandchild.run("print(open('/tmp/mine').read())") == "2"
    own_node.kill()
    own_node.start()
    assert await look(copies[0]) == KEPT
    for inside in (source, *copies):
        await own_node.end(inside.sandbox_id)
    assert await look(grandchild) == KEPT
    await own_node.call("remove_snapshot", messages.RemoveSnapshot("s2"))
    await own_node.end(grandchild.sandbox_id)
    assert layers(own_node) == set()


@NEEDS_GVISOR
async def test_snapshot_of_files_is_for_sandboxes_with_kernels_of_their_own_too(
    own_node: NodeProcess,
) -> None:
    source = await started(own_node)
    await source.run(CHANGE)
    order = messages.TakeSnapshot(source.sandbox_id, "s1", memory=False)
    await own_node.call("snapshot", order, messages.SnapshotTaken)
    copy = await started(own_node, snapshot_id="s1", isolation="gvisor")
    assert await look(copy) == KEPT


async def test_more_pauses_than_layers_lose_nothing(own_node: NodeProcess) -> None:
    """Twenty, each with a file more and one less: the layers are made one in between."""
    inside = await started(own_node)
    for number in range(20):
        await inside.run(
            f"import os; os.makedirs('/tmp/many', exist_ok=True); open('/tmp/many/{number}', 'w').close();"
            f" os.path.exists('/tmp/many/{number - 3}') and os.remove('/tmp/many/{number - 3}')"
        )
        await inside.pause(memory=False)
        await inside.resume()
        names = (await inside.run("import os; print(*sorted(map(int, os.listdir('/tmp/many'))))")).split()
        assert names == [str(one) for one in range(max(0, number - 2), number + 1)]
    assert len(layers(own_node)) < 9


async def test_pause_that_the_node_did_not_live_to_finish_leaves_it_running_or_paused(
    own_node: NodeProcess,
) -> None:
    """The node is killed after each step of a pause in turn; the files are there, and nothing is left."""
    inside = await started(own_node)
    await inside.run(CHANGE + "del x")
    runs_on = KEPT.replace("False False", "True False")
    for number, point in enumerate(PAUSE_POINTS):
        await inside.run(f"open('/tmp/number', 'w').write('{number}')")
        own_node.kill()
        own_node.start(point)
        own_node.arm()
        with pytest.raises(Unavailable):
            await inside.pause(memory=False)
        assert own_node.wait() == -signal.SIGKILL, point
        own_node.start()
        was_paused = await inside.state() == "paused"
        if was_paused:
            await inside.resume()
        assert await look(inside) in ((KEPT,) if was_paused else (KEPT, runs_on)), point
        assert await inside.run("print(open('/tmp/number').read())") == str(number), point
        assert images(own_node) == set(), point
    await own_node.end(inside.sandbox_id)
    assert layers(own_node) == set()


async def test_resumption_that_the_node_did_not_live_to_finish_leaves_it_paused_or_running(
    own_node: NodeProcess,
) -> None:
    """The node is killed after each step of a resumption in turn."""
    inside = await started(own_node)
    await inside.run(CHANGE)
    for point in RESUME_POINTS:
        await inside.pause(memory=False)
        own_node.kill()
        own_node.start(point)
        own_node.arm()
        with pytest.raises(Unavailable):
            await inside.resume()
        assert own_node.wait() == -signal.SIGKILL, point
        own_node.start()
        if await inside.state() == "paused":
            await inside.resume()
        assert await look(inside) == KEPT, point


async def test_copy_that_the_node_did_not_live_to_finish_leaves_the_source_as_it_was(
    own_node: NodeProcess,
) -> None:
    """And no copy, but for one that was complete, which the api takes away."""
    inside = await started(own_node)
    await inside.run("x = 41")
    for point in SNAPSHOT_POINTS:
        own_node.kill()
        own_node.start(point)
        own_node.arm()
        order = messages.TakeSnapshot(inside.sandbox_id, "s1", memory=False)
        with pytest.raises(Unavailable):
            await own_node.call("snapshot", order, messages.SnapshotTaken)
        assert own_node.wait() == -signal.SIGKILL, point
        own_node.start()
        assert await inside.run("print(x)") == "41", point
        await own_node.call("remove_snapshot", messages.RemoveSnapshot("s1"))
        assert layers(own_node) == set(), point


async def test_full_disk_leaves_the_sandbox_running(own_node: NodeProcess) -> None:
    """A copy needs room for all it has written; the error says so, and nothing of it is left."""
    inside = await started(own_node)
    own_node.kill()
    folder = own_node.state / "layers"
    shutil.rmtree(folder)
    folder.mkdir()
    # SAFETY: in the private mount namespace that these tests run in, over a folder made here.
    syscalls.mount("tmpfs", str(folder), "tmpfs", syscalls.MS_NODEV, "size=4m")
    try:
        own_node.start()
        await inside.run("import os; open('/tmp/large', 'wb').write(os.urandom(8 << 20))")
        order = messages.TakeSnapshot(inside.sandbox_id, "s1", memory=False)
        with pytest.raises(NotEnoughSpace):
            await own_node.call("snapshot", order, messages.SnapshotTaken)
        with pytest.raises(NotEnoughSpace):
            await inside.pause(memory=False)
        assert await inside.state() == "running"
        assert await inside.run("print(os.path.getsize('/tmp/large'))") == str(8 << 20)
        assert layers(own_node) == set()
    finally:
        own_node.kill()
        syscalls.unmount(str(folder))
        own_node.start()
    await inside.pause(memory=False)
    await inside.resume()
    assert await inside.run("import os; print(os.path.getsize('/tmp/large'))") == str(8 << 20)


async def test_damaged_files_are_refused_and_mended_ones_resume(own_node: NodeProcess) -> None:
    """One flipped bit; nothing is started of it."""
    inside = await started(own_node)
    await inside.run(CHANGE)
    await inside.pause(memory=False)
    (name,) = images(own_node)
    (file,) = (own_node.state / "layers").glob("*/fs/home/user/made/deep/file")
    flip(file)
    with pytest.raises(SnapshotUnusable, match=name):
        await inside.resume()
    block.await_nothing(block.number_of(own_node.state))
    flip(file)
    await inside.resume()
    assert await look(inside) == KEPT


async def test_file_that_is_mapped_and_written_is_kept_as_it_was(own_node: NodeProcess) -> None:
    """What a program has written through memory and nobody has told the disk of."""
    inside = await started(own_node)
    await inside.run(
        "import mmap; file = open('/tmp/mapped', 'w+b'); file.truncate(8192);"
        " memory = mmap.mmap(file.fileno(), 8192); memory[4096:4099] = b'abc'"
    )
    await inside.pause(memory=False)
    await inside.resume()
    assert await inside.run("print(open('/tmp/mapped', 'rb').read()[4096:4099])") == "b'abc'"


async def test_frozen_sandbox_goes_on_when_its_node_was_killed(own_node: NodeProcess) -> None:
    """As it does when it is asked for something; what it was told to stand still for is not kept."""
    inside = await started(own_node)
    await inside.run("x = 41")
    await own_node.call("freeze", messages.FreezeSandbox(inside.sandbox_id))
    own_node.kill()
    own_node.start()
    states = await own_node.call("list", {}, list[messages.SandboxState])
    assert [(state.state, state.is_frozen) for state in states] == [("running", False)]
    assert await healthy(own_node, inside.sandbox_id)
    assert await inside.run("print(x)") == "41"


@pytest.mark.parametrize("point", ["journal.write:1", "freeze:1"])
async def test_node_that_dies_while_it_freezes_a_sandbox_finds_it_running(
    own_node: NodeProcess, point: str
) -> None:
    inside = await started(own_node)
    await inside.run("x = 41")
    own_node.kill()
    own_node.start(point)
    own_node.arm()
    with pytest.raises(Unavailable):
        await own_node.call("freeze", messages.FreezeSandbox(inside.sandbox_id))
    assert own_node.wait() == -signal.SIGKILL
    own_node.start()
    assert await inside.run("print(x)") == "41"


async def test_programs_that_write_all_the_time_write_nothing_after_their_files_are_kept(
    own_node: NodeProcess,
) -> None:
    """What stood still is ended before its next instruction: a byte more, and the files would be refused."""
    inside = await started(own_node)
    writing = (
        "import os, subprocess, sys\n"
        "program = 'import os\\nwhile True: os.write(1, b\"x\" * 100)'\n"
        "for number in range(6):\n"
        "    file = open(f'/tmp/busy-{number}', 'wb')\n"
        "    subprocess.Popen([sys.executable, '-c', program], stdout=file, start_new_session=True)\n"
        "while min(os.path.getsize(f'/tmp/busy-{number}') for number in range(6)) < 1000: pass\n"
    )
    for _ in range(10):
        await inside.run(writing)
        await inside.pause(memory=False)
        await inside.resume()


async def test_volumes_are_there_again_and_nothing_of_them_is_kept(own_node: NodeProcess) -> None:
    """Others write to them meanwhile, and a copy has the same volume."""
    volume = messages.CreateVolume(new_volume_id(), "team", "token")
    await own_node.call("create_volume", volume)
    mounts = (messages.VolumeMount(volume.volume_id, "/data"),)
    first, second = [await started(own_node, volume_mounts=mounts) for _ in range(2)]
    await first.run("open('/data/shared', 'w').write('before'); open('/tmp/own', 'w').write('own')")
    order = messages.TakeSnapshot(first.sandbox_id, "s1", memory=False)
    await own_node.call("snapshot", order, messages.SnapshotTaken)
    await first.pause(memory=False)
    assert not [*(own_node.state / "layers").glob("*/fs/data/*")]
    await second.run("open('/data/shared', 'w').write('meanwhile')")
    await first.resume()
    copy = await started(own_node, snapshot_id="s1", volume_mounts=mounts)
    for inside in (first, copy):
        assert (
            await inside.run("print(open('/data/shared').read(), open('/tmp/own').read())") == "meanwhile own"
        )
    for inside in (first, second, copy):
        await own_node.end(inside.sandbox_id)
    await own_node.call("remove_volume", messages.RemoveVolume(volume.volume_id))
