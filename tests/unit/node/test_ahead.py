"""Sandboxes made ahead: how many, for whom, and every way in which one can go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.unit.node.conftest import Node, request_for

from cloche_server.config import Ahead, Limits
from cloche_server.node import ahead, create, kill, reconcile
from cloche_server.node.demand import RECENT_S, Demand, Need
from cloche_server.node.machine import Machine
from cloche_server.node.messages import EgressPolicy, SandboxEnded, SandboxReady, VolumeMount
from cloche_wire.errors import Internal, InvalidArgument, ResourceExhausted

pytestmark = pytest.mark.anyio
SMALL, LARGE = Need("t", "a", 2, 512, "remembering"), Need("t", "a", 2, 1024, "remembering")


def test_as_many_are_wanted_as_were_asked_for_lately_within_limits() -> None:
    demand = Demand(Ahead(most=5, least=2))
    assert demand.wanted(0) == {}
    demand.note(SMALL, 0)
    assert demand.wanted(1) == {SMALL: 2}
    for second in range(4):
        demand.note(SMALL, second)
    assert demand.wanted(4) == {SMALL: 5}
    demand.note(LARGE, 5)
    assert demand.wanted(6) == {LARGE: 2, SMALL: 3}
    assert demand.wanted(RECENT_S + 10) == {LARGE: 2, SMALL: 2}


def test_what_nobody_has_asked_for_in_long_is_not_kept() -> None:
    demand = Demand(Ahead(keep_s=100))
    demand.note(SMALL, 0)
    demand.note(LARGE, 50)
    assert set(demand.wanted(101)) == {LARGE}
    assert demand.wanted(200) == {}


def test_none_are_wanted_where_there_may_be_none() -> None:
    demand = Demand(Ahead(most=0))
    demand.note(SMALL, 0)
    assert demand.wanted(1) == {SMALL: 0}


@asynccontextmanager
async def keeping(machine: Machine, count: int = 2) -> AsyncIterator[list[SandboxReady]]:
    """Run the keeper after one create, until that many are ready."""
    machine.demand.note(Need.of(request_for("a")), machine.clock.boot_s())
    task = machine.tasks.create_task(ahead.run(machine))
    try:
        await until(lambda: len(ahead.ready(machine)) == count)
        yield ahead.ready(machine)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(true: Callable[[], bool]) -> None:
    for _ in range(5000):
        if true():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("not within 10 s")


async def test_one_is_left_as_it_was_where_as_many_as_may_be_are_somebody_s(node: Node) -> None:
    async with node.machine() as m, keeping(m) as (first, second):
        m.config = msgspec.structs.replace(m.config, limits=Limits(max_sandboxes=1))
        await create.create(m, request_for("a", sandbox_id=first.sandbox_id))
        with pytest.raises(ResourceExhausted):
            await create.create(m, request_for("a", sandbox_id=second.sandbox_id))
        assert ahead.ready(m) == [second]
        await kill.end(m, first.sandbox_id, "killed")
        await create.create(m, request_for("a", sandbox_id=second.sandbox_id))


async def test_one_that_was_made_ahead_becomes_the_request_s(node: Node) -> None:
    async with node.machine() as m, keeping(m) as (first, _):
        before = node.driver.specs[0]
        assert node.network.slots == {0: False, 1: False}
        assert {record.state for record in m.journal.read_all()} == {"ready"}
        policy = EgressPolicy(deny=("9.9.9.9/32",))
        routes = m.routes.listen()
        request = request_for("a", sandbox_id=first.sandbox_id, egress=policy, timeout_s=7)
        state = await create.create(m, request)
        assert state.sandbox_id == first.sandbox_id == before.sandbox_id
        assert (state.end_at - state.started_at).total_seconds() == 7
        assert (await anext(routes)).name == "route"
        assert (node.network.slots[0], node.network.policies[0]) == (True, policy)
        record = m.find(first.sandbox_id).record
        assert (record.slot, record.request) == (0, request)
        assert record.runtime_tree == m.tree.path.name  # what is saved of it is restored with that
        assert record in m.journal.read_all()
        await until(lambda: len(ahead.ready(m)) == 2)  # another took its place
        await kill.end_all(m, "killed")
    assert node.remains() == {}


async def test_one_that_has_ended_meanwhile_is_made_from_the_start(node: Node) -> None:
    """And nobody is told of an end of that id before its own."""
    async with node.machine() as m:
        async with keeping(m) as (first, _):
            ends = m.ends.listen()
            node.driver.exit(first.sandbox_id)
            assert (await anext(ends)).name == "unready"
            state = await create.create(m, request_for("a", sandbox_id=first.sandbox_id))
            assert state.sandbox_id == first.sandbox_id
            await kill.end(m, first.sandbox_id, "timeout")
            while (event := await anext(ends)).name != "ended":
                pass
            assert event.data == SandboxEnded(first.sandbox_id, "timeout")
            await until(lambda: len(ahead.ready(m)) == 2)
        await kill.end_all(m, "killed")
    assert node.remains() == {}


@pytest.mark.parametrize(
    "changes", [{"memory_mib": 4096}, {"volume_mounts": (VolumeMount("v" + "a" * 20, "/data"),)}]
)
async def test_one_of_another_kind_is_refused_and_stays(
    node: Node, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(create.volume_requests, "check_mounts", lambda *_: None)
    async with node.machine() as m:
        async with keeping(m) as (first, _):
            with pytest.raises(InvalidArgument, match="made ahead for other requests"):
                await create.create(m, request_for("a", sandbox_id=first.sandbox_id, **changes))
            assert first in ahead.ready(m)
        await kill.end_all(m, "killed")


async def test_a_claim_that_fails_leaves_nothing_of_it(node: Node) -> None:
    async with node.machine() as m:
        async with keeping(m) as (first, second):
            node.driver.status = b"500 Oops"
            with pytest.raises(Internal, match="refused /init"):
                await create.create(m, request_for("a", sandbox_id=first.sandbox_id))
            assert first.sandbox_id not in m.live
            assert second in ahead.ready(m)
        await kill.end_all(m, "killed")
    assert node.remains() == {}


async def test_one_that_fails_is_tried_again_after_pauses_that_double_and_creates_go_on(node: Node) -> None:
    node.driver.status = b"500 Oops"
    async with node.machine() as m:
        async with keeping(m, count=0):
            await until(lambda: bool(node.driver.specs) and not m.live)
            node.driver.status = b"204 No Content"
            await create.create(m, request_for("a"))
            assert ahead.ready(m) == []
            node.driver.status = b"500 Oops"
            for pause_s in (ahead.FIRST_PAUSE_S, 2 * ahead.FIRST_PAUSE_S):
                await _looked(m)  # it has noted the failure by this clock
                tried = len(node.driver.specs)
                node.clock.elapsed_s += pause_s - 1
                await _looked(m)
                assert len(node.driver.specs) == tried
                node.clock.elapsed_s += 2
                await _looked(m)
                await until(lambda tried=tried: len(node.driver.specs) == tried + 1 and len(m.live) == 1)
        await kill.end_all(m, "killed")
    assert node.remains() == {}


async def _looked(m: Machine) -> None:
    """Have the keeper look, and return when it has."""
    m.demand.changed.set()
    await until(lambda: not m.demand.changed.is_set())


async def test_too_many_and_those_of_an_unwanted_build_are_ended(node: Node) -> None:
    async with node.machine() as m, keeping(m):
        node.clock.elapsed_s += m.config.ahead.keep_s + 1
        m.demand.changed.set()
        await until(lambda: not m.live)
    assert node.remains() == {}


async def test_none_is_made_while_a_create_is_under_way(node: Node) -> None:
    async with node.machine() as m:
        async with keeping(m):
            node.driver.go_on.clear()
            node.driver.starting.clear()
            making = m.tasks.create_task(create.create(m, request_for("b")))
            await node.driver.starting.wait()
            for offer in ahead.ready(m):
                await kill.end(m, offer.sandbox_id, "killed")
            m.demand.changed.set()
            await asyncio.sleep(0)
            assert [live.record.request.sandbox_id for live in m.live.values()] == [
                request_for("b").sandbox_id
            ]
            node.driver.go_on.set()
            await making
            await until(lambda: len(ahead.ready(m)) == 2)
        await kill.end_all(m, "killed")


OTHER = "99999999-2222-4333-8444-555555555555"


def starting(node: Node, build_id: str, ready: str) -> None:
    """Have a template with a start command."""
    folder = node.state / "templates" / build_id
    folder.mkdir(exist_ok=True)
    text = f'{{"rootfs": "rootfs", "start_cmd": "serve", "ready_cmd": "{ready}"}}'
    (folder / "manifest.json").write_text(text)


async def test_those_of_other_templates_are_made_while_one_waits_for_its_start_command(node: Node) -> None:
    """As many as are wanted wait at once, and no more; they are ready once it is."""
    starting(node, OTHER, "sleep 20")
    node.driver.is_ready.clear()
    async with node.machine() as m:
        async with keeping(m):
            m.demand.note(Need.of(request_for("b", build_id=OTHER)), m.clock.boot_s())
            await until(lambda: sum(live.is_waiting for live in m.live.values()) == 2)
            m.demand.note(Need.of(request_for("c", memory_mib=64)), m.clock.boot_s())
            await until(lambda: len(ahead.ready(m)) == 4)
            node.driver.is_ready.set()
            await until(lambda: len(ahead.ready(m)) == 6)
            await _looked(m)
            assert len(m.live) == 6
        await kill.end_all(m, "killed")
    assert node.remains() == {}


async def test_one_whose_start_command_fails_is_not_there_and_tried_again_later(node: Node) -> None:
    starting(node, OTHER, "true")
    node.driver.is_ready.clear()
    need = Need.of(request_for("b", build_id=OTHER))
    async with node.machine() as m:
        async with keeping(m):
            m.demand.note(need, m.clock.boot_s())
            await until(lambda: sum(live.is_waiting for live in m.live.values()) == 2)
            node.driver.status = b"503 It has failed"
            node.driver.is_ready.set()
            await until(lambda: len(m.live) == 2)
            tried = len(node.driver.specs)
            await _looked(m)
            assert len(node.driver.specs) == tried
        await kill.end_all(m, "killed")
    assert node.remains() == {}


@pytest.mark.parametrize(("ready", "waits"), [("curl x", True), ("sleep 20", False), ("", False)])
async def test_a_create_on_demand_waits_for_a_ready_command_that_can_tell(
    node: Node, ready: str, waits: bool
) -> None:
    starting(node, OTHER, ready)
    node.driver.is_ready.clear()
    async with node.machine() as m:
        making = m.tasks.create_task(create.create(m, request_for("b", build_id=OTHER)))
        await until(lambda: making.done() or any(live.is_waiting for live in m.live.values()))
        assert making.done() is not waits
        node.driver.status = b"503 It has failed"  # its creator can see why
        node.driver.is_ready.set()
        assert (await making).sandbox_id in m.live
        await kill.end_all(m, "killed")
    assert node.remains() == {}


async def test_none_is_made_on_a_machine_short_of_memory(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_has_memory", lambda *_: False)
    async with node.machine() as m, keeping(m, count=0):
        await asyncio.sleep(0)
        assert node.driver.specs == []


async def test_a_node_that_dies_in_a_claim_leaves_nothing_of_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object) -> None:
        raise asyncio.CancelledError

    async with node.machine(dies=True) as m, keeping(m) as (first, _):
        monkeypatch.setattr(create, "_hand_over", dies)
        with pytest.raises(asyncio.CancelledError):
            await create.create(m, request_for("a", sandbox_id=first.sandbox_id))
    async with node.machine() as second:
        await reconcile.reconcile(second)
        assert node.remains() == {}
        assert second.slots.taken == frozenset()


async def test_none_is_made_in_the_last_slots(node: Node) -> None:
    async with node.machine() as m:
        m.config = msgspec.structs.replace(m.config, limits=Limits(max_sandboxes=1))
        async with keeping(m, count=1):
            await _looked(m)
            assert len(m.live) == 1
        await kill.end_all(m, "killed")


async def test_a_restarted_node_ends_those_that_were_ready(node: Node) -> None:
    async with node.machine(dies=True) as m, keeping(m):
        pass
    async with node.machine() as second:
        assert (await reconcile.reconcile(second)).ended == 2
        assert node.remains() == {}
