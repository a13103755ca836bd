"""Creating and ending over a driver that only remembers: every way out leaves nothing."""

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.node.conftest import Node, request_for

from cloche_server.node import agent_link, assemble, create, dial, kill, machine, reaper, reconcile, threads
from cloche_server.node.messages import Dial, EgressPolicy, SetTimeout
from cloche_wire.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    NotEnoughSpace,
    ResourceExhausted,
    SandboxNotFound,
    TemplateNotFound,
    Unavailable,
)

pytestmark = pytest.mark.anyio

A = request_for("a").sandbox_id


async def test_created_sandbox_runs_and_is_journalled_and_routed(node: Node) -> None:
    async with node.machine() as m:
        routes = m.routes.listen()
        state = await create.create(m, request_for("a", env={"A": "request"}))
        assert (await anext(routes)).data == m.route(m.find(A).record)
        assert state.sandbox_id == A
        assert (state.end_at - state.started_at).total_seconds() == 60
        assert [record.state for record in m.journal.read_all()] == ["running"]
        assert node.driver.specs[0].limits.memory_mib == 2048
        assert node.network.slots == {0: True}
        await kill.end(m, A, "killed")


async def test_killed_sandbox_leaves_nothing_and_is_told_of_once(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        ends, routes = m.ends.listen(), m.routes.listen()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(kill.end(m, A, "killed"))
        assert node.remains() == {}
        assert m.slots.taken == frozenset()
        assert (await anext(routes)).name == "gone"
        assert (await anext(ends)).data.reason == "killed"  # type: ignore[attr-defined]
        assert m.ends._queues  # still registered, and nothing more queued
        assert all(queue.empty() for queue in m.ends._queues)


async def test_init_that_ends_by_itself_ends_the_sandbox(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        ends = m.ends.listen()
        node.driver.exit(A)
        assert (await anext(ends)).data.reason == "exited"  # type: ignore[attr-defined]
        assert node.remains() == {}


@pytest.mark.parametrize("status", [b"500 Oops", b"nonsense", b""])
async def test_agent_that_does_not_accept_its_identity_fails_the_create(node: Node, status: bytes) -> None:
    node.driver.status = status
    async with node.machine() as m:
        with pytest.raises(Internal, match="agent"):
            await create.create(m, request_for("a"))
        assert node.remains() == {}


async def test_failed_start_leaves_nothing(node: Node) -> None:
    node.driver.failures.append(Internal("cannot start the sandbox: no"))
    async with node.machine() as m:
        with pytest.raises(Internal, match=r"no$"):
            await create.create(m, request_for("a"))
        assert node.remains() == {}
        assert m.slots.taken == frozenset()


async def test_removal_that_the_kernel_refuses_is_tried_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill, "RETRY_S", 0.0)
    node.driver.refusals += [Internal("busy"), OSError(errno.EBUSY, "busy")]
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        await kill.end(m, A, "killed")
        assert node.remains() == {}


async def test_full_disk_is_told_as_such_and_leaves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with node.machine() as m:
        with monkeypatch.context() as patched:
            patched.setattr(m.journal, "write", full)
            with pytest.raises(NotEnoughSpace):
                await create.create(m, request_for("a"))
        assert node.remains() == {}
        assert m.slots.taken == frozenset()


async def test_full_disk_does_not_keep_a_sandbox_alive(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with node.machine() as m:
        await create.create(m, request_for("a"))
        monkeypatch.setattr(m.journal, "write", full)
        await kill.end(m, A, "killed")
        assert node.remains() == {}


async def test_driver_out_of_space_is_told_as_such(node: Node) -> None:
    failure = Internal("cannot start the sandbox: no space")
    failure.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    node.driver.failures.append(failure)
    async with node.machine() as m:
        with pytest.raises(NotEnoughSpace):
            await create.create(m, request_for("a"))
        assert node.remains() == {}


async def test_limit_is_told_and_a_freed_slot_counts_again(node: Node) -> None:
    node.limit = 1
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        with pytest.raises(ResourceExhausted):
            await create.create(m, request_for("b"))
        await kill.end(m, A, "killed")
        await create.create(m, request_for("b"))


async def test_same_id_twice_is_refused(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        with pytest.raises(AlreadyExists):
            await create.create(m, request_for("a"))
        assert m.find(A)


async def test_unknown_build_is_refused(node: Node) -> None:
    async with node.machine() as m:
        with pytest.raises(TemplateNotFound):
            await create.create(m, request_for("a", build_id="99999999-2222-4333-8444-555555555555"))
        assert node.remains() == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"sandbox_id": "../../x"}, {"sandbox_id": ""}, {"sandbox_id": "i" * 50}, {"build_id": "../templates"},
        {"build_id": "."}, {"build_id": "/etc"}, {"cpu_count": -1}, {"cpu_count": 0}, {"memory_mib": -1},
        {"memory_mib": 0}, {"timeout_s": -1},
    ],
    ids=str,
)  # fmt: skip
async def test_request_that_the_api_should_not_have_sent_is_refused(
    node: Node, changes: dict[str, Any]
) -> None:
    """The api is unprivileged and the node is root: what becomes a path or a limit is checked here too."""
    async with node.machine() as m:
        with pytest.raises((InvalidArgument, TemplateNotFound)):
            await create.create(
                m, request_for("a", **changes) if "sandbox_id" not in changes else request_for(**changes)
            )
        assert node.remains() == {}


async def test_create_is_refused_while_draining(node: Node) -> None:
    async with node.machine() as m:
        m.draining = True
        with pytest.raises(Unavailable):
            await create.create(m, request_for("a"))


@pytest.mark.parametrize("where", ["start", "agent", "network"])
async def test_sandbox_ended_while_it_is_made_leaves_nothing(
    node: Node, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain meets creates in every step; what a step makes after the end began must not stay."""
    async with node.machine() as m, asyncio.TaskGroup() as tasks:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()
        if where == "start":
            node.driver.go_on.clear()
            reached = node.driver.starting
        elif where == "agent":

            async def silent(*_: Any, **__: Any) -> None:
                reached.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(agent_link, "initialize", silent)
        else:
            slow, real = asyncio.Event(), node.network.create

            def slowly(slot: int, namespace: int, policy: EgressPolicy, *, online: bool) -> None:
                loop.call_soon_threadsafe(reached.set)
                asyncio.run_coroutine_threadsafe(slow.wait(), loop).result()
                real(slot, namespace, policy, online=online)

            monkeypatch.setattr(node.network, "create", slowly)
            loop.call_later(0.05, slow.set)

        async def creating() -> None:
            with pytest.raises(Unavailable):
                await create.create(m, request_for("a"))

        tasks.create_task(creating())
        await reached.wait()
        loop.call_later(0.02, node.driver.go_on.set)
        await kill.end_all(m, "killed")
        assert node.remains() == {}
        assert m.live == {}
        assert m.slots.taken == frozenset()
    assert node.remains() == {}


async def test_no_namespace_stays_open(node: Node) -> None:
    def descriptors() -> int:
        return sum(1 for path in Path("/proc/self/fd").iterdir() if path.is_char_device())

    async with node.machine() as m:
        before = descriptors()
        for _ in range(3):
            await create.create(m, request_for("a"))
            await kill.end(m, A, "killed")
        assert descriptors() == before


async def test_restart_adopts_what_runs(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_open_network", lambda _: node.network.new_namespace())
    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a"))
    async with node.machine() as second:
        found = await reconcile.reconcile(second)
        assert (found.adopted, found.ended, found.strays) == (1, 0, 0)
        assert second.find(A).record == m.live[A].record
        assert second.slots.taken == {0}
        await kill.end(second, A, "killed")
        assert node.remains() == {}


@pytest.mark.parametrize("step", ["journal", "network", "folder", "start", "agent"])
async def test_restart_undoes_what_was_half_made(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node stops in its tracks after each step of a create."""
    reached = asyncio.Event()

    def blocked(*_: Any, **__: Any) -> Any:
        reached.set()
        raise asyncio.CancelledError

    async def blocked_later(*_: Any, **__: Any) -> None:
        blocked()

    with monkeypatch.context() as patched:
        if step == "journal":
            patched.setattr(assemble, "assemble", blocked_later)
        elif step == "network":
            patched.setattr(machine.Machine, "folder", blocked)
        elif step == "folder":
            patched.setattr(assemble, "_listen", blocked)
        elif step == "start":
            patched.setattr(machine.Machine, "note", blocked)
        else:
            patched.setattr(agent_link, "initialize", blocked_later)
        async with node.machine(dies=True) as m:
            with pytest.raises(asyncio.CancelledError):
                await create.create(m, request_for("a"))
    assert reached.is_set()
    assert "records" in node.remains()
    async with node.machine() as second:
        await reconcile.reconcile(second)
        assert node.remains() == {}
        assert second.slots.taken == frozenset()


async def test_restart_goes_on_with_an_end_that_was_under_way(node: Node) -> None:
    node.driver.refusals.append(asyncio.CancelledError())  # type: ignore[arg-type] - the node stops here
    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a"))
        gone = m.routes.listen()
        m.tasks.create_task(kill.end(m, A, "killed"))
        await anext(gone)
        await asyncio.sleep(0)
    async with node.machine() as second:
        ends = second.ends.listen()
        assert (await reconcile.reconcile(second)).ended == 1
        assert (await anext(ends)).data.reason == "killed"  # type: ignore[attr-defined]
        assert node.remains() == {}


async def test_restart_does_not_wait_for_a_sandbox_that_the_kernel_holds(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "PATIENCE_S", 0.05)
    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a"))
    node.driver.refusals.append(Internal("held"))
    async with node.machine() as second:
        second.boot_id = "another"
        found = await reconcile.reconcile(second)
        assert (found.adopted, found.ended) == (0, 1)
        assert second.slots.taken == {second.live[A].record.slot}
        await second.live[A].gone.wait()
        assert node.remains() == {}


async def test_restart_removes_what_nobody_knows(node: Node) -> None:
    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a"))
    (record,) = (node.state / "node" / "journal").iterdir()
    record.write_text("{ torn")
    async with node.machine() as second:
        found = await reconcile.reconcile(second)
        assert found.adopted == 0
        assert node.remains() == {}


async def test_restart_after_a_boot_forgets_everything(node: Node) -> None:
    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a"))
    async with node.machine() as second:
        second.boot_id = "another"
        found = await reconcile.reconcile(second)
        assert (found.adopted, found.ended) == (0, 1)
        assert node.remains() == {}


async def test_verbs_on_an_unknown_sandbox_say_so(node: Node) -> None:
    async with node.machine() as m:
        with pytest.raises(SandboxNotFound):
            reaper.set_timeout(m, SetTimeout(A, 10))
        with pytest.raises(SandboxNotFound):
            await dial.dial(m, Dial(A, 80))
        await kill.end(m, A, "killed")


@pytest.mark.parametrize("port", [0, -1, 65_536])
async def test_port_that_cannot_be_is_refused(node: Node, port: int) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        with pytest.raises(InvalidArgument):
            await dial.dial(m, Dial(A, port))


async def test_dial_never_uses_a_namespace_that_was_closed_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be another sandbox's by the time a thread gets to it."""
    seen: list[bool] = []

    async with node.machine() as m:
        await create.create(m, request_for("a"))
        closed = m.find(A).network_namespace
        assert closed is not None

        async def end_first(function: Any, namespace: int) -> Any:
            await kill.end(m, A, "killed")
            seen.append(namespace == closed)
            raise SandboxNotFound("over")

        monkeypatch.setattr(dial, "threads", SimpleNamespace(in_thread=end_first))
        monkeypatch.setattr(kill, "dismantle", _removal_without_threads(m))
        with pytest.raises(SandboxNotFound):
            await dial.dial(m, Dial(A, 80))
    assert seen == [False]


def _removal_without_threads(m: machine.Machine) -> Any:
    import os

    async def remove(_: machine.Machine, live: machine.Live, **__: bool) -> None:
        await m.driver(live.record).destroy(live.record.request.sandbox_id, Path(), None)
        assert live.network_namespace is not None
        os.close(live.network_namespace)
        live.network_namespace = None
        m.live.pop(live.record.request.sandbox_id)

    return remove


async def test_thread_is_waited_for_when_its_caller_is_cancelled() -> None:
    """Half a step has no undo: the undo must not begin while the step still runs."""
    loop = asyncio.get_running_loop()
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def step() -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        loop.call_soon_threadsafe(done.set)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(threads.in_thread(step))
        await begun.wait()
        task.cancel()
        loop.call_later(0.02, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert done.is_set()
