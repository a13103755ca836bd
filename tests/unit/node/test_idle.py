"""Sandboxes in which nothing happens: when they come to rest, and that no request is lost by it."""

import asyncio
from typing import Any

import pytest
from tests.unit.node.conftest import Node, request_for

from cloche_server.isolation.base import Capabilities
from cloche_server.node import create, freezing, idle, kill, resume
from cloche_server.node.machine import Machine
from cloche_server.node.messages import IdleSandbox, MetricPoint, Wake
from cloche_server.node.metrics import Sampler
from cloche_wire.errors import NotEnoughSpace, SandboxNotFound, UnsupportedOption

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("able")]
A = "i" + "a" * 20


async def resting(m: Machine, node: Node, **changes: Any) -> Sampler:
    """A sandbox that has used nothing for longer than its creator set."""
    await create.create(m, request_for("a", idle_after_s=10, timeout_s=600, **changes))
    sampler = Sampler(m)
    await sampler.sample()
    for _ in range(5):
        node.clock.elapsed_s += 5
        await sampler.sample()
    return sampler


async def say(m: Machine, sampler: Sampler, *, is_frozen: bool = False) -> float:
    """Have the edge say that it is idle, and what follows from it be done; when it is to say so again."""
    before = asyncio.all_tasks()
    answer = await idle.consider(m, sampler, IdleSandbox(A, is_frozen))
    if begun := asyncio.all_tasks() - before:
        await asyncio.wait(begun)
    return answer.after_s


async def test_idle_sandbox_is_frozen_and_the_edge_knows_why(node: Node) -> None:
    async with node.machine() as m:
        sampler = await resting(m, node)
        routes = m.routes.listen()
        await say(m, sampler)
        assert node.driver.frozen == {A}
        route = (await anext(routes)).data
        assert (route.is_frozen, route.is_idle, route.idle_after_s) == (True, True, 0)


async def test_one_whose_creator_said_nothing_is_left_alone(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        await say(m, Sampler(m))
        assert node.driver.frozen == set()


async def test_one_that_uses_the_cpu_is_busy(node: Node) -> None:
    async with node.machine() as m:
        sampler = await resting(m, node)
        at_s = int(node.clock.now().timestamp())
        sampler._watched[A].history.add(MetricPoint(at_s, idle.CPU_PCT, 0, 0, 0))  # of two CPUs together
        assert await say(m, sampler) == idle.LOOK_AGAIN_S
        assert node.driver.frozen == set()
        node.clock.elapsed_s += 20
        await sampler.sample()
        await say(m, sampler)
        assert node.driver.frozen == {A}


async def test_one_that_nothing_is_known_of_is_busy(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", idle_after_s=10))
        node.clock.elapsed_s += 60
        assert await say(m, Sampler(m)) == idle.LOOK_AGAIN_S
        assert node.driver.frozen == set()


async def test_one_with_a_connection_of_its_own_is_busy(node: Node) -> None:
    async with node.machine() as m:
        sampler = await resting(m, node)
        node.network.connected.add(m.find(A).record.slot)
        assert await say(m, sampler) == idle.LOOK_AGAIN_S
        assert node.driver.frozen == set()


async def test_one_that_the_node_was_asked_about_waits_as_long_again(node: Node) -> None:
    async with node.machine() as m:
        sampler = await resting(m, node)
        await freezing.need(m, m.find(A))
        node.clock.elapsed_s += 3
        assert await say(m, sampler) == pytest.approx(7)
        assert node.driver.frozen == set()


async def test_one_that_is_to_go_to_disk_stands_still_first_and_goes_when_nothing_is_open(
    node: Node,
) -> None:
    async with node.machine() as m:
        sampler = await resting(m, node, idle_action="pause")
        routes = m.routes.listen()
        await say(m, sampler)
        assert (await anext(routes)).data.idle_after_s == 10
        await say(m, sampler)  # sent before the edge knew that it stands still: that is no promise
        assert A in m.live
        await say(m, sampler, is_frozen=True)
        assert list(m.paused) == [A]
        assert [route.is_paused for route in m.routes_now()] == [True]
        assert not (await resume.wake(m, Wake(A))).sleeps


async def test_request_that_comes_before_the_pause_has_it_stay(node: Node) -> None:
    async with node.machine() as m:
        sampler = await resting(m, node, idle_action="pause")
        await say(m, sampler)
        answer = await idle.consider(m, sampler, IdleSandbox(A, is_frozen=True))
        assert answer.after_s > 0
        route = await resume.wake(m, Wake(A))  # its turn comes first
        assert not route.sleeps
        await say(m, sampler, is_frozen=True)
        assert A in m.live
        assert node.driver.frozen == set()


async def test_request_that_comes_in_the_pause_has_it_come_back(node: Node, monkeypatch: Any) -> None:
    gate = asyncio.Event()
    real = node.driver.save

    async def slow(*args: Any) -> tuple[str, ...]:
        await gate.wait()
        return await real(*args)

    async with node.machine() as m:
        sampler = await resting(m, node, idle_action="pause")
        await say(m, sampler)
        monkeypatch.setattr(node.driver, "save", slow)
        await idle.consider(m, sampler, IdleSandbox(A, is_frozen=True))
        await asyncio.sleep(0)
        assert m.live[A].record.state == "pausing"
        async with asyncio.TaskGroup() as tasks:
            woken = tasks.create_task(resume.wake(m, Wake(A)))
            await asyncio.sleep(0)
            gate.set()
        assert not woken.result().sleeps
        assert m.find(A).record.images_made == 1


async def test_pause_that_fails_has_it_run_on(node: Node) -> None:
    async with node.machine() as m:
        sampler = await resting(m, node, idle_action="pause")
        await say(m, sampler)
        node.driver.save_failures.append(NotEnoughSpace("full"))
        await say(m, sampler, is_frozen=True)
        assert (m.find(A).record.state, node.driver.frozen) == ("running", set())


async def test_isolation_that_cannot_pause_refuses_that_at_the_create(node: Node) -> None:
    node.driver.able = Capabilities(name="remembering", shares_host_kernel=False, freezes=True)
    async with node.machine() as m:
        with pytest.raises(UnsupportedOption, match="cannot keep the memory"):
            await create.create(m, request_for("a", idle_after_s=10, idle_action="pause"))


async def test_one_that_ends_meanwhile_is_let_be(node: Node) -> None:
    async with node.machine() as m:
        sampler = await resting(m, node)
        await idle.consider(m, sampler, IdleSandbox(A))
        await kill.end_or_forget(m, A, "killed")
        assert node.remains() == {}
        with pytest.raises(SandboxNotFound):
            await idle.consider(m, sampler, IdleSandbox(A))
