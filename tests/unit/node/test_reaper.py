"""Time-outs, by a clock that the test turns."""

import asyncio

import pytest
from tests.unit.node.conftest import Node, request_for

from cloche_server.node import create, reaper
from cloche_server.node.messages import SetTimeout

pytestmark = pytest.mark.anyio

A = request_for("a").sandbox_id


async def test_time_out_ends_by_the_boot_clock(node: Node) -> None:
    async with node.machine() as m:
        reaping = m.tasks.create_task(reaper.run(m))
        await create.create(m, request_for("a", timeout_s=60))
        await create.create(m, request_for("b", timeout_s=61))
        ends = m.ends.listen()
        node.clock.elapsed_s += 60
        m.deadlines_changed.set()
        event = (await anext(ends)).data
        assert (event.sandbox_id, event.reason) == (A, "timeout")  # type: ignore[attr-defined]
        assert list(m.live) == [request_for("b").sandbox_id]
        reaping.cancel()


async def test_deadline_that_passed_while_the_machine_was_suspended_is_met(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "LONGEST_SLEEP_S", 0.01)
    async with node.machine() as m:
        reaping = m.tasks.create_task(reaper.run(m))
        await create.create(m, request_for("a", timeout_s=60))
        ends = m.ends.listen()
        await asyncio.sleep(0)
        node.clock.elapsed_s += 60  # and nobody tells the reaper
        async with asyncio.timeout(10):
            assert (await anext(ends)).data.reason == "timeout"  # type: ignore[attr-defined]
        reaping.cancel()


async def test_wall_clock_jump_ends_nothing(node: Node) -> None:
    async with node.machine() as m:
        reaping = m.tasks.create_task(reaper.run(m))
        await create.create(m, request_for("a"))
        node.clock.start = node.clock.start.replace(year=2040)
        m.deadlines_changed.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert m.find(A).record.state == "running"
        reaping.cancel()


async def test_deadline_that_passed_while_the_node_was_down_is_met_at_its_start(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        ends = m.ends.listen()
        node.clock.elapsed_s += 10_000
        reaping = m.tasks.create_task(reaper.run(m))
        assert (await anext(ends)).data.reason == "timeout"  # type: ignore[attr-defined]
        reaping.cancel()


async def test_earlier_deadline_wakes_the_reaper(node: Node) -> None:
    async with node.machine() as m:
        reaping = m.tasks.create_task(reaper.run(m))
        await create.create(m, request_for("a", timeout_s=3600))
        ends = m.ends.listen()
        reaper.set_timeout(m, SetTimeout(A, 0))
        assert (await anext(ends)).data.reason == "timeout"  # type: ignore[attr-defined]
        reaping.cancel()


async def test_timeout_is_from_now_and_journalled(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", timeout_s=60))
        node.clock.elapsed_s += 30
        state = reaper.set_timeout(m, SetTimeout(A, 40))
        assert (state.end_at - state.started_at).total_seconds() == 70
        assert m.journal.read_all()[0].deadline_boot_s == 1070
        shorter = reaper.set_timeout(m, SetTimeout(A, 10, only_extend=True))
        assert shorter.end_at == state.end_at
        assert reaper.set_timeout(m, SetTimeout(A, 10)).end_at < state.end_at
