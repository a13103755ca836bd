"""Sandboxes that stand still: whatever has to be answered has them go on, and nothing is lost on the way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tests.unit.node.conftest import Node, request_for

from cloche_server.isolation.base import Capabilities
from cloche_server.link import Event
from cloche_server.node import create, dial, freezing, kill, logs, pause, reaper, reconcile, resume, snapshots
from cloche_server.node.machine import Machine
from cloche_server.node.messages import (
    Dial,
    FreezeSandbox,
    LogsQuery,
    PauseSandbox,
    ResumeSandbox,
    SetTimeout,
    TakeSnapshot,
    Wake,
)
from cloche_wire.errors import (
    Conflict,
    Internal,
    NotEnoughSpace,
    PortClosed,
    ResourceExhausted,
    SandboxNotFound,
    UnsupportedOption,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("able")]
A = "i" + "a" * 20


async def frozen(m: Machine, **changes: Any) -> None:
    await create.create(m, request_for("a", **changes))
    await freezing.freeze(m, FreezeSandbox(A))


def told(events: AsyncIterator[Event], count: int) -> Any:
    async def first() -> list[Event]:
        return [await anext(events) for _ in range(count)]

    return first()


async def test_frozen_sandbox_runs_for_everybody_and_stands_still(node: Node) -> None:
    async with node.machine() as m:
        routes, ends = m.routes.listen(), m.ends.listen()
        await frozen(m)
        assert node.driver.frozen == {A}
        state = m.find(A).record.public()
        assert (state.state, state.is_frozen) == ("running", True)
        made, stopped = await told(routes, 2)
        assert [made.data.sleeps, stopped.data.sleeps, stopped.data.is_idle] == [False, True, False]
        assert [event.name for event in await told(ends, 1)] == ["frozen"]
        await freezing.freeze(m, FreezeSandbox(A))


async def test_memory_of_a_frozen_one_is_given_back_unless_it_goes_on_before(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        for goes_on in (True, False):
            before = asyncio.all_tasks()
            async with m.turns.of(freezing._RECLAIMING):
                await freezing.freeze(m, FreezeSandbox(A))
                reclaiming = asyncio.all_tasks() - before
                if goes_on:
                    await resume.wake(m, Wake(A))
            await asyncio.wait(reclaiming)
            assert node.driver.reclaimed == ([] if goes_on else [A])


async def _wake(m: Machine) -> None:
    assert not (await resume.wake(m, Wake(A))).sleeps


async def _dial(m: Machine) -> None:
    with pytest.raises((PortClosed, OSError)):  # there is no network here
        await dial.dial(m, Dial(A, 80))


async def _ask_logs(m: Machine) -> None:
    with pytest.raises(Internal):  # the agent of these tests keeps none
        await logs.LogKeeper(m).query(LogsQuery(A))


@pytest.mark.parametrize("act", [_wake, _dial, _ask_logs])
async def test_whatever_needs_it_has_it_go_on(node: Node, act: Any) -> None:
    async with node.machine() as m:
        await frozen(m)
        ends = m.ends.listen()
        await act(m)
        assert node.driver.frozen == set()
        assert not m.find(A).record.is_frozen
        assert [event.name for event in await told(ends, 1)] == ["thawed"]


async def test_its_time_goes_on_and_may_be_moved(node: Node) -> None:
    async with node.machine() as m:
        await frozen(m)
        reaper.set_timeout(m, SetTimeout(A, 500))
        assert node.driver.frozen == {A}


async def test_kill_has_it_tell_its_last_words_first(node: Node) -> None:
    async with node.machine() as m:
        asked: list[bool] = []

        async def before_removal(live: Any) -> None:
            asked.append(A in node.driver.frozen)

        m.before_removal = before_removal
        await frozen(m)
        await kill.end_or_forget(m, A, "killed")
        assert asked == [False]
        assert node.remains() == {}


async def test_one_that_cannot_go_on_can_be_killed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*_: Any) -> None:
        raise Internal("no")

    async with node.machine() as m:
        await frozen(m)
        monkeypatch.setattr(node.driver, "thaw", refuses)
        with pytest.raises(Internal):
            await resume.wake(m, Wake(A))
        assert m.find(A).record.is_frozen
        await kill.end_or_forget(m, A, "killed")
        assert node.remains() == {}


async def test_pause_and_copy_of_a_frozen_one_keep_it_as_it_is(node: Node) -> None:
    async with node.machine() as m:
        await frozen(m)
        await snapshots.take(m, TakeSnapshot(A, "s1"))
        assert node.driver.frozen == {A}
        assert m.find(A).record.is_frozen
        await pause.pause(m, PauseSandbox(A))
        assert (await resume.resume(m, ResumeSandbox(A, 60))).is_frozen is False


async def test_pause_of_a_frozen_one_that_fails_has_it_run(node: Node) -> None:
    async with node.machine() as m:
        await frozen(m)
        routes = m.routes.listen()
        node.driver.save_failures.append(NotEnoughSpace("full"))
        with pytest.raises(NotEnoughSpace):
            await pause.pause(m, PauseSandbox(A))
        assert node.driver.frozen == set()
        assert [event.data.sleeps for event in await told(routes, 1)] == [False]


async def test_what_is_not_there_is_paused_or_busy_is_not_frozen(node: Node) -> None:
    async with node.machine() as m:
        with pytest.raises(SandboxNotFound):
            await freezing.freeze(m, FreezeSandbox(A))
        await create.create(m, request_for("a"))
        async with m.turns.of(A):
            with pytest.raises(Conflict, match="something else"):
                await freezing.freeze(m, FreezeSandbox(A))
        await pause.pause(m, PauseSandbox(A))
        with pytest.raises(Conflict, match="paused"):
            await freezing.freeze(m, FreezeSandbox(A))


async def test_machine_that_cannot_says_so(node: Node) -> None:
    node.driver.able = Capabilities(name="remembering", shares_host_kernel=False)
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        with pytest.raises(UnsupportedOption, match="cannot freeze"):
            await freezing.freeze(m, FreezeSandbox(A))
        with pytest.raises(UnsupportedOption, match="cannot freeze"):
            await create.create(m, request_for("b", idle_after_s=5))


async def test_one_that_does_not_stand_still_runs_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*_: Any) -> None:
        raise Internal("does not stand still")

    async with node.machine() as m:
        await create.create(m, request_for("a"))
        with monkeypatch.context() as patched:
            patched.setattr(node.driver, "freeze", refuses)
            with pytest.raises(Internal):
                await freezing.freeze(m, FreezeSandbox(A))
            with pytest.raises(Internal):
                await snapshots.take(m, TakeSnapshot(A, "s1"))
        assert not m.find(A).record.is_frozen
        await freezing.freeze(m, FreezeSandbox(A))


async def test_many_that_need_it_have_it_go_on_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    thaws: list[str] = []
    real = node.driver.thaw

    async def counted(sandbox_id: str, folder: Any) -> None:
        thaws.append(sandbox_id)
        await asyncio.sleep(0)
        await real(sandbox_id, folder)

    monkeypatch.setattr(node.driver, "thaw", counted)
    async with node.machine() as m:
        await frozen(m)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(10):
                tasks.create_task(resume.wake(m, Wake(A)))
                tasks.create_task(freezing.need(m, m.find(A)))
        assert thaws == [A]


async def test_request_that_comes_while_it_freezes_has_it_go_on_after_that(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    real = node.driver.freeze

    async def slow(sandbox_id: str, folder: Any) -> None:
        await gate.wait()
        await real(sandbox_id, folder)

    monkeypatch.setattr(node.driver, "freeze", slow)
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(freezing.freeze(m, FreezeSandbox(A)))
            await asyncio.sleep(0)
            woken = tasks.create_task(resume.wake(m, Wake(A)))
            await asyncio.sleep(0)
            gate.set()
        assert not woken.result().sleeps
        assert node.driver.frozen == set()


@pytest.mark.parametrize("step", ["before", "after"])
async def test_node_that_dies_has_it_go_on_when_it_is_back(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_open_network", lambda _: node.network.new_namespace())

    async def dies(*_: Any) -> None:
        raise asyncio.CancelledError

    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a"))
        if step == "before":
            monkeypatch.setattr(node.driver, "freeze", dies)
            with pytest.raises(asyncio.CancelledError):
                await freezing.freeze(m, FreezeSandbox(A))
        else:
            await freezing.freeze(m, FreezeSandbox(A))
    async with node.machine() as m:
        await reconcile.reconcile(m)
        assert node.driver.frozen == set()
        record = m.find(A).record
        assert (record.state, record.is_frozen) == ("running", False)
        assert msgspec.structs.replace(record, is_frozen=True) not in m.journal.read_all()


async def test_frozen_sandboxes_count_against_the_limit(node: Node) -> None:
    node.limit = 1
    async with node.machine() as m:
        await frozen(m)
        with pytest.raises(ResourceExhausted):
            await create.create(m, request_for("b"))
