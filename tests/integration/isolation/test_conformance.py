"""What every driver keeps to, whatever its kind."""

import asyncio

import pytest
from tests.integration.isolation.conftest import Workshop
from tests.support.waiting import until, until_true

from cloche_server.isolation import identity
from cloche_server.isolation.base import Usage
from cloche_server.isolation.overlay import UPPER
from cloche_wire.errors import Internal

pytestmark = pytest.mark.anyio

_DESCENDANT = """
reading, writing = os.pipe()
if os.fork() == 0:
    connection.close()
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.write(writing, b"x")
    while True:
        time.sleep(60)
result = os.read(reading, 1).decode()
"""

_DESCRIPTORS = """
own = {connection.fileno()}
result = {}
for name in os.listdir("/proc/self/fd"):
    try:
        what = os.readlink(f"/proc/self/fd/{name}")  # the listing itself is closed by now
    except FileNotFoundError:
        continue
    if int(name) not in own:
        result[name] = what
"""


async def test_started_init_lives_and_obeys(workshop: Workshop) -> None:
    """A start gives the identity of a process that runs the given program."""
    sandbox = await workshop.start()
    assert workshop.driver.is_alive(sandbox.init)
    assert sandbox.run("result = 6 * 7") == 42


async def test_listeners_are_descriptors_three_and_four_and_there_are_no_others(workshop: Workshop) -> None:
    """The agent inherits its two sockets by number; nothing else of the server leaks into it."""
    if not workshop.driver.capabilities().listeners:
        pytest.skip("its agent listens in its own network")
    sandbox = await workshop.start()
    descriptors = sandbox.run(_DESCRIPTORS)
    assert {number: what for number, what in descriptors.items() if int(number) > 4} == {}
    assert set(descriptors) == set("01234")
    names = sandbox.run("result = [socket.socket(fileno=os.dup(n)).getsockname() for n in (3, 4)]")
    assert names == [str(path) for path in sandbox.sockets]


async def test_environment_is_the_given_one(workshop: Workshop) -> None:
    """No variable of the server reaches a sandbox."""
    sandbox = await workshop.start()
    variables = sandbox.run("result = dict(os.environ)")
    assert variables["NAME"] == "value"
    of_the_driver = {"HOME", "CLOCHE_FAKE_SANDBOX"}  # crun sets the first
    assert set(variables) - {"PATH", "NAME", "LC_CTYPE"} - of_the_driver == set()


async def test_wait_returns_when_the_init_ends(workshop: Workshop) -> None:
    """An init that ends by itself is noticed."""
    sandbox = await workshop.start()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(workshop.driver.wait(sandbox.init))
        await asyncio.sleep(0)
        assert not waiting.done()
        identity.kill(sandbox.init)
    assert not workshop.driver.is_alive(sandbox.init)
    await workshop.driver.wait(sandbox.init)


async def test_destroy_leaves_nothing_and_may_be_repeated(workshop: Workshop) -> None:
    """Descendants in sessions of their own that ignore signals end too, and a second destroy is none."""
    sandbox = await workshop.start()
    assert sandbox.run(_DESCENDANT) == "x"
    sandbox_id = sandbox.spec.sandbox_id
    # What started it may be in the group still, for the moment between its answer and its end.
    allowed = workshop.pids(inside=2)
    until(lambda: workshop.driver.usage(sandbox_id).pids in allowed, within_s=5, what="two processes")
    assert sandbox_id in workshop.driver.leftovers()
    for _ in range(2):
        await workshop.driver.destroy(sandbox_id, sandbox.spec.folder, sandbox.init)
        assert not workshop.driver.is_alive(sandbox.init)
        assert sandbox_id not in workshop.driver.leftovers()
        assert workshop.driver.usage(sandbox_id) == Usage(0, 0.0, 0)


async def test_sandbox_that_was_never_made_can_be_destroyed(workshop: Workshop) -> None:
    """A create that stopped before its first act is undone like any other."""
    spec = workshop.spec()
    await workshop.driver.destroy(spec.sandbox_id, spec.folder, None)
    await workshop.driver.destroy(spec.sandbox_id, spec.folder / "missing", None)


async def test_sandbox_whose_init_nobody_wrote_down_can_be_destroyed(workshop: Workshop) -> None:
    """A node that was killed between a start and its journal knows the id only."""
    sandbox = await workshop.start()
    await workshop.driver.destroy(sandbox.spec.sandbox_id, sandbox.spec.folder, None)
    assert not workshop.driver.is_alive(sandbox.init)
    assert workshop.driver.leftovers() == set()


async def test_another_driver_adopts_what_runs(workshop: Workshop) -> None:
    """The driver of a restarted node can do with a sandbox all that its maker could."""
    sandbox = await workshop.start()
    other = workshop.make_driver()
    assert other.is_alive(sandbox.init)
    assert sandbox.spec.sandbox_id in other.leftovers()
    # What started it may be in the group still, for the moment between its answer and its end.
    allowed = workshop.pids(inside=1)
    until(lambda: other.usage(sandbox.spec.sandbox_id).pids in allowed, within_s=5, what="one process")
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(other.wait(sandbox.init))
        await asyncio.sleep(0)
        await other.destroy(sandbox.spec.sandbox_id, sandbox.spec.folder, sandbox.init)
    assert workshop.driver.leftovers() == set()


async def test_sandboxes_outlive_their_driver(workshop: Workshop) -> None:
    """Closing a driver, as a stopping node does, ends no sandbox."""
    sandbox = await workshop.start()
    other = workshop.make_driver()
    workshop.driver.close()
    workshop.driver = other
    assert other.is_alive(sandbox.init)
    assert sandbox.run("result = 1") == 1


async def test_program_that_does_not_exist_fails_the_start_and_destroy_leaves_nothing(
    workshop: Workshop,
) -> None:
    """A failed start raises, and what it made is gone after a destroy."""
    spec = workshop.spec(argv=("/no/such/program",))
    with pytest.raises(Internal, match="cannot start the sandbox"):
        await workshop.driver.start(spec)
    await workshop.driver.destroy(spec.sandbox_id, spec.folder, None)
    assert workshop.driver.leftovers() == set()


async def test_driver_goes_on_after_a_failed_start(workshop: Workshop) -> None:
    """One bad sandbox costs no other."""
    with pytest.raises(Internal):
        await workshop.driver.start(workshop.spec(argv=("/no/such/program",)))
    assert (await workshop.start()).run("result = 1") == 1


async def test_ten_starts_at_once_make_ten_sandboxes(workshop: Workshop) -> None:
    """Starts do not get into one another's way."""
    async with asyncio.TaskGroup() as tasks:
        starts = [tasks.create_task(workshop.start()) for _ in range(10)]
    sandboxes = [start.result() for start in starts]
    assert len({sandbox.init.pid for sandbox in sandboxes}) == 10
    assert [sandbox.run("result = os.getpid() > 0") for sandbox in sandboxes] == [True] * 10


_SPINNING = """
reading, writing = os.pipe()
if os.fork() == 0:
    connection.close()
    os.write(writing, b"x")
    while True:
        pass
result = os.read(reading, 1).decode()
"""


def _needs_freezing(workshop: Workshop) -> None:
    if not workshop.driver.capabilities().freezes:
        pytest.skip("its driver cannot freeze")


async def _computes(workshop: Workshop, sandbox_id: str) -> None:
    """Claim that a sandbox uses the processor, of which a busy machine may give it little."""
    before = workshop.driver.usage(sandbox_id).cpu_s

    async def used_some() -> bool:
        return workshop.driver.usage(sandbox_id).cpu_s > before + 0.05

    await until_true(used_some, within_s=20, what="use of the processor")


async def _rests(workshop: Workshop, sandbox_id: str) -> None:
    """Claim that it uses none at all."""
    before = workshop.driver.usage(sandbox_id).cpu_s
    await asyncio.sleep(0.3)
    assert workshop.driver.usage(sandbox_id).cpu_s == before


async def test_frozen_sandbox_uses_no_cpu_and_goes_on_where_it_was(workshop: Workshop) -> None:
    """Every process of it stands still, whatever it does; a second freeze and thaw change nothing."""
    _needs_freezing(workshop)
    sandbox = await workshop.start()
    assert sandbox.run(_SPINNING) == "x"
    sandbox_id, folder = sandbox.spec.sandbox_id, sandbox.spec.folder
    await _computes(workshop, sandbox_id)
    for _ in range(2):
        await workshop.driver.freeze(sandbox_id, folder)
    assert workshop.driver.is_alive(sandbox.init)
    await _rests(workshop, sandbox_id)
    await workshop.driver.thaw(sandbox_id, folder)
    assert sandbox.run("result = 6 * 7") == 42
    await _computes(workshop, sandbox_id)


async def test_frozen_sandbox_is_destroyed_like_any_other(workshop: Workshop) -> None:
    """Its processes die although they stand still, also when nobody has written its init down."""
    _needs_freezing(workshop)
    for is_known in (True, False):
        sandbox = await workshop.start()
        assert sandbox.run(_SPINNING) == "x"
        sandbox_id, folder = sandbox.spec.sandbox_id, sandbox.spec.folder
        await workshop.driver.freeze(sandbox_id, folder)
        async with asyncio.timeout(10):
            await workshop.driver.destroy(sandbox_id, folder, sandbox.init if is_known else None)
        assert not workshop.driver.is_alive(sandbox.init)
        assert sandbox_id not in workshop.driver.leftovers()


async def test_another_driver_has_a_frozen_sandbox_go_on(workshop: Workshop) -> None:
    """A restarted node finds it standing still, and it is not lost."""
    _needs_freezing(workshop)
    sandbox = await workshop.start()
    await workshop.driver.freeze(sandbox.spec.sandbox_id, sandbox.spec.folder)
    for _ in range(2):
        await workshop.make_driver().thaw(sandbox.spec.sandbox_id, sandbox.spec.folder)
    assert sandbox.run("result = 1") == 1


async def test_what_is_written_is_a_layer_of_others_where_the_driver_says_so(workshop: Workshop) -> None:
    """Nothing has to be asked of a sandbox that stands still to have its files."""
    if not workshop.driver.capabilities().writes_layers:
        pytest.skip("it keeps them elsewhere")
    sandbox = await workshop.start()
    sandbox.run("os.mkdir('/made'); open('/made/file', 'w').write('text'); os.chown('/made/file', 7, 8)")
    await workshop.driver.freeze(sandbox.spec.sandbox_id, sandbox.spec.folder)
    written = sandbox.spec.folder / UPPER
    status = (written / "made" / "file").stat()
    assert ((written / "made" / "file").read_text(), status.st_uid, status.st_gid) == ("text", 7, 8)
    await workshop.driver.destroy(sandbox.spec.sandbox_id, sandbox.spec.folder, sandbox.init)
    other = await workshop.start(layers=(written, *sandbox.spec.layers))
    assert other.run("result = open('/made/file').read()") == "text"
