"""Sandboxes that hold more than they may, where the kernel does not end one process of theirs."""

import anyio
import msgspec
import pytest
from tests.support.waiting import until_true

from cloche_server.isolation.base import Usage
from cloche_server.node import agent_link, create, freezing
from cloche_server.node.memory_guard import LONGEST_S, RELIEF_S, SHORTEST_S, MemoryGuard
from cloche_wire.errors import Internal

from .conftest import Node, request_for

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@pytest.fixture
def guarded(node: Node) -> Node:
    """Its driver's sandboxes have a margin of 300 MiB; they may hold 512 + 100."""
    node.driver.able = msgspec.structs.replace(
        node.driver.able, own_memory_mib=100, memory_margin_mib=300, freezes=True
    )
    return node


@pytest.fixture
def relieved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tokens of the agents that were asked."""
    asked: list[str] = []
    real = agent_link.relieve

    async def noted(address: str, access_token: str, *, timeout_s: float) -> None:
        asked.append(access_token)
        await real(address, access_token, timeout_s=timeout_s)

    monkeypatch.setattr(agent_link, "relieve", noted)
    return asked


def uses(node: Node, monkeypatch: pytest.MonkeyPatch, held_mib: float, cache_mib: int = 0) -> None:
    held = Usage(int((held_mib + cache_mib) * MIB), 0.0, 1, cache_mib * MIB)
    monkeypatch.setattr(node.driver, "usage", lambda _: held)


async def test_beyond_its_limit_the_agent_is_asked_and_below_it_not(
    guarded: Node, relieved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uses(guarded, monkeypatch, 611)
    async with guarded.machine() as machine:
        request = request_for(memory_mib=512)
        await create.create(machine, request)
        guard = MemoryGuard(machine)
        assert await guard.look() == SHORTEST_S
        assert relieved == []
        uses(guarded, monkeypatch, 613)
        guarded.clock.elapsed_s += SHORTEST_S
        assert await guard.look() == pytest.approx(RELIEF_S)

        async def was_asked() -> bool:
            return bool(relieved)

        await until_true(was_asked, within_s=5, what="the agent")
        assert relieved == [request.access_token]


async def test_cache_of_files_is_not_held(
    guarded: Node, relieved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uses(guarded, monkeypatch, 100, cache_mib=800)
    async with guarded.machine() as machine:
        await create.create(machine, request_for(memory_mib=512))
        assert 0.2 < await MemoryGuard(machine).look() < 0.3
        assert relieved == []


async def test_agent_that_does_not_answer_is_not_asked_twice_and_keeps_nobody_waiting(
    guarded: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses(guarded, monkeypatch, 700)
    asked: list[str] = []
    answers = anyio.Event()

    async def slow(address: str, access_token: str, *, timeout_s: float) -> None:
        asked.append(access_token)
        await answers.wait()
        raise Internal("it did not answer")

    monkeypatch.setattr(agent_link, "relieve", slow)
    async with guarded.machine() as machine:
        await create.create(machine, request_for(memory_mib=512))
        guard = MemoryGuard(machine)
        for _ in range(3):
            await guard.look()
            await anyio.wait_all_tasks_blocked()
            guarded.clock.elapsed_s += RELIEF_S
        assert len(asked) == 1
        answers.set()
        await anyio.wait_all_tasks_blocked()
        await guard.look()
        await anyio.wait_all_tasks_blocked()
        assert len(asked) == 2


async def test_who_stands_still_and_who_has_no_margin_are_left_alone(
    guarded: Node, relieved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uses(guarded, monkeypatch, 5000)
    async with guarded.machine() as machine:
        request = request_for(memory_mib=512)
        await create.create(machine, request)
        live = machine.live[request.sandbox_id]
        async with machine.turns.of(request.sandbox_id):
            assert await MemoryGuard(machine).look() == pytest.approx(RELIEF_S)  # on its way somewhere
            await freezing.come_to_rest(machine, live, is_idle=False)
        assert await MemoryGuard(machine).look() == LONGEST_S
        async with machine.turns.of(request.sandbox_id):
            await freezing.go_on(machine, live)
        guarded.driver.able = msgspec.structs.replace(guarded.driver.able, memory_margin_mib=0)
        assert await MemoryGuard(machine).look() == LONGEST_S
        assert relieved == []
