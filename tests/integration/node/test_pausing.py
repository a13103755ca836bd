"""Sandboxes with kernels of their own, paused, resumed and copied: what ran goes on, whatever is killed."""

import asyncio
import shutil
import signal

import pytest
from tests.integration.node.conftest import NEEDS_A_NODE, NEEDS_GVISOR, NodeProcess
from tests.integration.node.interpreting import flip, images, started
from tests.support import block

from cloche_server.isolation import syscalls
from cloche_server.node import messages
from cloche_wire.errors import NotEnoughSpace, SnapshotNotFound, SnapshotUnusable, Unavailable

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE, NEEDS_GVISOR]

PAUSE_POINTS = (
    "journal.write:1", "journal.write:2", "gvisor.freeze:1", "gvisor.save:1", "images.commit:1",
    "journal.write:3", "gvisor.destroy:1", "network.remove:1",
)  # fmt: skip
RESUME_POINTS = (
    "slots.take:1", "journal.write:1", "network.create:1", "gvisor.start:1", "journal.write:2",
    "initialize:1", "journal.write:3", "images.remove:1",
)  # fmt: skip
COUNTING = """
import threading, time
n = 0
def count():
    global n
    while True:
        n += 1
        time.sleep(0.001)
threading.Thread(target=count, daemon=True).start()
"""


async def test_what_ran_goes_on_after_a_pause_and_a_restart_of_the_node(gvisor_node: NodeProcess) -> None:
    """Variables, threads, open files; and no process and no group is left meanwhile."""
    inside = await started(gvisor_node)
    await inside.run(COUNTING)
    await inside.run("file = open('/tmp/kept', 'w+'); file.write('abc'); file.seek(1)")
    await inside.pause()
    assert await inside.state() == "paused"
    block.await_nothing(block.number_of(gvisor_node.state))
    gvisor_node.kill()
    gvisor_node.start()
    await inside.resume()
    # Its thread is given time until it has counted on; a busy machine may give it none for a while.
    later = "a, end = n, time.monotonic() + 20\nwhile n == a and time.monotonic() < end: time.sleep(0.01)"
    first, second, rest = (await inside.run(f"{later}\nprint(a, n, file.read())")).split()
    assert 0 < int(first) < int(second)
    assert rest == "bc"


async def test_twenty_copies_differ_in_all_that_is_random(gvisor_node: NodeProcess) -> None:
    """The hook of a restore runs in each before anybody reaches it."""
    source = await started(gvisor_node)
    await source.run("import random, uuid, os, tempfile, ssl; random.random(); x = 41")
    await gvisor_node.call("snapshot", messages.TakeSnapshot(source.sandbox_id, "s1"), messages.SnapshotTaken)
    seen: list[list[str]] = []
    for _ in range(4):
        async with asyncio.TaskGroup() as tasks:
            making = [tasks.create_task(started(gvisor_node, snapshot_id="s1")) for _ in range(5)]
        for task in making:
            said = await task.result().run(
                "print(x, os.urandom(8).hex(), random.random(), uuid.uuid4().hex, ssl.RAND_bytes(8).hex(),"
                " next(tempfile._get_candidate_names()), os.environ['E2B_SANDBOX_ID'])"
            )
            seen.append(said.split())
            await gvisor_node.end(task.result().sandbox_id)
    assert {row[0] for row in seen} == {"41"}
    for column in range(1, len(seen[0])):
        assert len({row[column] for row in seen}) == len(seen), f"column {column}: {seen}"
    assert await source.run("print(x)") == "41"


async def test_pause_that_the_node_did_not_live_to_finish_leaves_it_running_or_paused(
    gvisor_node: NodeProcess,
) -> None:
    """The node is killed after each step of a pause in turn."""
    inside = await started(gvisor_node)
    await inside.run(COUNTING)
    before = 0
    for point in PAUSE_POINTS:
        gvisor_node.kill()
        gvisor_node.start(point)
        gvisor_node.arm()
        with pytest.raises(Unavailable):
            await inside.pause()
        assert gvisor_node.wait() == -signal.SIGKILL, point
        gvisor_node.start()
        if await inside.state() == "paused":
            await inside.resume()
        now = int(await inside.run("print(n)"))
        assert now > before, point
        before = now
        assert images(gvisor_node) == set(), point


async def test_resumption_that_the_node_did_not_live_to_finish_leaves_it_paused_or_running(
    gvisor_node: NodeProcess,
) -> None:
    """The node is killed after each step of a resumption in turn."""
    inside = await started(gvisor_node)
    await inside.run("x = 41")
    for point in RESUME_POINTS:
        await inside.pause()
        gvisor_node.kill()
        gvisor_node.start(point)
        gvisor_node.arm()
        with pytest.raises(Unavailable):
            await inside.resume()
        assert gvisor_node.wait() == -signal.SIGKILL, point
        gvisor_node.start()
        if await inside.state() == "paused":
            await inside.resume()
        assert await inside.run("print(x)") == "41", point


async def test_full_disk_leaves_the_sandbox_running(gvisor_node: NodeProcess) -> None:
    """The error says so, and nothing of the image is left."""
    inside = await started(gvisor_node)
    await inside.run("x = 41")
    gvisor_node.kill()
    folder = gvisor_node.state / "images"
    shutil.rmtree(folder)
    folder.mkdir()
    # SAFETY: in the private mount namespace that these tests run in, over a folder made here.
    syscalls.mount("tmpfs", str(folder), "tmpfs", syscalls.MS_NODEV, "size=4m")
    try:
        gvisor_node.start()
        with pytest.raises(NotEnoughSpace):
            await inside.pause()
        assert await inside.state() == "running"
        assert await inside.run("print(x)") == "41"
        assert images(gvisor_node) == set()
    finally:
        gvisor_node.kill()
        syscalls.unmount(str(folder))
        gvisor_node.start()
    await inside.pause()
    await inside.resume()
    assert await inside.run("print(x)") == "41"


async def test_damaged_image_is_refused_and_a_mended_one_resumes(gvisor_node: NodeProcess) -> None:
    """One flipped bit, anywhere; nothing is started of it."""
    inside = await started(gvisor_node)
    await inside.run("x = 41")
    await inside.pause()
    (name,) = images(gvisor_node)
    path = gvisor_node.state / "images" / name / "pages.img"
    flip(path)
    with pytest.raises(SnapshotUnusable, match=name):
        await inside.resume()
    block.await_nothing(block.number_of(gvisor_node.state))
    flip(path)
    await inside.resume()
    assert await inside.run("print(x)") == "41"


async def test_kernel_of_a_release_that_is_not_known_is_asked_by_its_program(
    gvisor_node: NodeProcess,
) -> None:
    """As is that of a sandbox which an earlier version has started, who wrote no release down."""
    for release in ("20990101", None):
        inside = await started(gvisor_node)
        await inside.run("x = 41")
        said = gvisor_node.state / "sandboxes" / inside.sandbox_id / "runsc.release"
        said.unlink()
        if release is not None:
            said.write_text(release)
        order = messages.TakeSnapshot(inside.sandbox_id, inside.sandbox_id)
        taken = await gvisor_node.call("snapshot", order, messages.SnapshotTaken)
        assert taken.bytes_on_disk > 0
        await inside.pause()
        await inside.resume()
        assert await inside.run("print(x)") == "41"


async def test_copy_for_now_is_gone_when_the_node_was_killed(gvisor_node: NodeProcess) -> None:
    source = await started(gvisor_node)
    await source.run("x = 41")
    order = messages.TakeSnapshot(source.sandbox_id, "s1", for_now=True)
    await gvisor_node.call("snapshot", order, messages.SnapshotTaken)
    copy = await started(gvisor_node, snapshot_id="s1")
    assert await copy.run("print(x)") == "41"
    gvisor_node.kill()
    gvisor_node.start()
    assert not [path for path in (gvisor_node.state / "images").iterdir() if "s1" in path.name]
    assert (await source.run("print(x)"), await copy.run("print(x)")) == ("41", "41")
    with pytest.raises(SnapshotNotFound):
        await started(gvisor_node, snapshot_id="s1")


@pytest.mark.nightly
async def test_hundred_pauses_leave_nothing_and_grow_nothing(gvisor_node: NodeProcess) -> None:
    inside = await started(gvisor_node)
    await inside.run("x = 0")
    sizes: list[int] = []
    for number in range(100):
        await inside.pause()
        (name,) = images(gvisor_node)
        sizes.append((gvisor_node.state / "images" / name / "pages.img").stat().st_size)
        await inside.resume()
        assert await inside.run("x += 1; print(x)") == str(number + 1)
    assert sizes[-1] < 1.2 * sizes[4]
    assert images(gvisor_node) == set()
