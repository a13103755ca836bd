"""Families: whose sandboxes are in one, which slots they have, and what a zygote that ends changes."""

import asyncio
from collections.abc import Iterator

import pytest
from tests.unit.node.conftest import BUILD_ID, Node, request_for
from tests.unit.node.test_ahead import keeping, until

from cloche_server.isolation.base import Capabilities, Family, FamilySpec, ProcessIdentity
from cloche_server.node import ahead, create, kill, zygotes
from cloche_server.node.demand import Need
from cloche_server.node.families import FEWER_SANDBOXES, MOST_AGE_S, MOST_SANDBOXES, SANDBOXES, Kind
from cloche_server.node.slots import SLOTS
from cloche_wire.errors import Internal

pytestmark = pytest.mark.anyio
KIND = Kind.of(request_for("a"))


class RememberedFamily:
    """A family without a kernel."""

    def __init__(self, node: Node, number: int) -> None:
        self._node = node
        self.init = ProcessIdentity(500_000 + number, 1, "boot")
        node.driver.ended[self.init.pid] = asyncio.Event()
        self.is_closed = False

    async def network_namespace(self) -> int:
        return self._node.network.new_namespace()

    def close(self) -> None:
        self.is_closed = True


class Opened:
    """What the driver was asked for, and what it gave."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.specs: list[FamilySpec] = []
        self.families: list[RememberedFamily] = []
        self.failures: list[Exception] = []

    async def open(self, spec: FamilySpec) -> Family:
        self.specs.append(spec)
        if self.failures:
            raise self.failures.pop(0)
        self.families.append(RememberedFamily(self._node, len(self.families)))
        return self.families[-1]

    def end(self, family: RememberedFamily) -> None:
        self._node.driver.ended[family.init.pid].set()


@pytest.fixture
def opened(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """A driver that has families."""
    made = Opened(node)
    able = Capabilities(name="remembering", shares_host_kernel=True, families=True)
    monkeypatch.setattr(node.driver, "capabilities", lambda: able)
    monkeypatch.setattr(node.driver, "open_family", made.open, raising=False)
    yield made
    for family in made.families:
        made.end(family)


async def test_sandboxes_of_a_kind_are_in_its_family_and_others_are_not(node: Node, opened: Opened) -> None:
    async with node.machine() as m:
        assert await zygotes.open_family(m, KIND)
        slots = set(opened.specs[0].slots)
        assert len(slots) == 1 + SANDBOXES
        await create.create(m, request_for("a"))
        await create.create(m, request_for("b", team_id="another"))
        inside, outside = node.driver.specs
        assert inside.family is opened.families[0]
        assert inside.slot in slots - {opened.specs[0].slots[0]}
        assert outside.family is None
        assert outside.slot not in slots
        opened.end(opened.families[0])


async def test_a_family_comes_before_what_is_made_ahead(node: Node, opened: Opened) -> None:
    async with node.machine() as m:
        async with keeping(m):
            assert [spec.family for spec in node.driver.specs] == [opened.families[0]] * 2
            assert len(opened.specs) == 1
        opened.end(opened.families[0])


async def test_one_that_cannot_be_started_costs_nobody_a_sandbox(node: Node, opened: Opened) -> None:
    """What is made is made without, and nothing of it is left; it is tried again after a while."""
    opened.failures = [Internal("its imports took longer than 60 s")]
    async with node.machine() as m:
        async with keeping(m):
            assert [spec.family for spec in node.driver.specs] == [None, None]
            assert len(opened.specs) == 1
            assert not opened.specs[0].folder.exists()
            assert m.families.kept == ()
            node.clock.elapsed_s += ahead.FIRST_PAUSE_S
            await create.create(m, request_for("a", sandbox_id=ahead.ready(m)[0].sandbox_id))
            await until(lambda: len(m.families.kept) == 1)
            await until(lambda: len(ahead.ready(m)) == 2)
        opened.end(opened.families[0])


async def test_a_zygote_that_ends_is_replaced_and_its_sandboxes_go_on(node: Node, opened: Opened) -> None:
    async with node.machine() as m:
        async with keeping(m) as (first, _):
            await create.create(m, request_for("a", sandbox_id=first.sandbox_id))
            opened.end(opened.families[0])
            await until(lambda: opened.families[0].is_closed)
            assert first.sandbox_id in node.driver.running
            before = m.slots.taken
            await create.create(m, request_for("a", sandbox_id=ahead.ready(m)[0].sandbox_id))
            await until(lambda: len(opened.families) == 2)
            assert before.isdisjoint(set(opened.specs[1].slots))
            await until(lambda: len(ahead.ready(m)) == 3)  # as many as were asked for: the keeper rests
        opened.end(opened.families[1])


async def test_a_family_that_nobody_asks_for_goes_once_it_is_empty(node: Node, opened: Opened) -> None:
    async with node.machine() as m:
        await zygotes.open_family(m, KIND)
        state = await create.create(m, request_for("a"))
        await zygotes.close_unused(m, ())
        assert len(m.families.kept) == 1
        await kill.end(m, state.sandbox_id, "killed")
        await zygotes.close_unused(m, {KIND})
        assert len(m.families.kept) == 1
        await zygotes.close_unused(m, ())
        assert m.families.kept == ()
        assert opened.families[0].is_closed
        opened.end(opened.families[0])


async def test_a_full_family_gets_a_second(node: Node, opened: Opened) -> None:
    node.limit = 2 * SANDBOXES
    async with node.machine() as m:
        await zygotes.open_family(m, KIND)
        taken = [m.families.take(KIND, 0.0) for _ in range(SANDBOXES)]
        assert None not in taken
        assert m.families.take(KIND, 0.0) is None
        assert m.families.room(KIND, 0.0) == 0
        await zygotes.open_family(m, KIND)
        second = m.families.take(KIND, 0.0)
        assert second is not None
        assert second[1] is opened.families[1]
        for slot, _ in filter(None, [*taken, second]):
            m.slots.give_back(slot)
        for family in opened.families:
            opened.end(family)


async def test_where_few_slots_are_left_a_family_is_smaller_and_then_there_is_none(
    node: Node, opened: Opened
) -> None:
    node.limit = SLOTS // 2
    async with node.machine() as m:
        while await zygotes.open_family(m, KIND):
            pass
        sizes = [len(spec.slots) - 1 for spec in opened.specs]
        large = SLOTS // 2 // (1 + SANDBOXES)
        assert sizes == [SANDBOXES] * large + [FEWER_SANDBOXES] * (len(sizes) - large)
        assert SLOTS // 2 - sum(sizes) - len(sizes) < 1 + FEWER_SANDBOXES
        for family in opened.families:
            opened.end(family)


async def test_an_old_family_is_replaced_and_what_is_in_it_lives_on(node: Node, opened: Opened) -> None:
    async with node.machine() as m:
        await zygotes.open_family(m, KIND)
        old = await create.create(m, request_for("a"))
        node.clock.elapsed_s += MOST_AGE_S
        async with keeping(m):
            new = await create.create(m, request_for("b"))
            first, *others = [spec.family for spec in node.driver.specs]
            assert first is opened.families[0]
            assert set(others) == {opened.families[1]}
            assert not opened.families[0].is_closed
            assert {old.sandbox_id, new.sandbox_id} <= node.driver.running.keys()
            await kill.end(m, old.sandbox_id, "killed")
            m.demand.changed.set()
            await until(lambda: opened.families[0].is_closed)
        for family in opened.families:
            opened.end(family)


async def test_an_old_family_serves_until_there_is_a_fresh_one(node: Node, opened: Opened) -> None:
    async with node.machine() as m:
        await zygotes.open_family(m, KIND)
        node.clock.elapsed_s += MOST_AGE_S
        await zygotes.close_unused(m, {KIND})
        await create.create(m, request_for("a"))
        assert node.driver.specs[0].family is opened.families[0]
        assert m.families.room(KIND, m.clock.boot_s()) == 0
        opened.end(opened.families[0])


async def test_a_family_that_has_had_many_sandboxes_is_outdated(node: Node, opened: Opened) -> None:
    async with node.machine() as m:
        await zygotes.open_family(m, KIND)
        for left in range(MOST_SANDBOXES, 0, -1):
            assert m.families.room(KIND, m.clock.boot_s()) > 0, left
            taken = m.families.take(KIND, m.clock.boot_s())
            assert taken is not None
            m.slots.give_back(taken[0])
        assert m.families.room(KIND, m.clock.boot_s()) == 0
        opened.end(opened.families[0])


async def test_of_outdated_families_only_the_last_waits_for_its_sandboxes(node: Node, opened: Opened) -> None:
    async with node.machine() as m:
        for name in ("a", "b", "c"):
            await zygotes.open_family(m, KIND)
            await create.create(m, request_for(name))
            await zygotes.close_unused(m, {KIND})
            node.clock.elapsed_s += MOST_AGE_S
        await zygotes.open_family(m, KIND)
        await zygotes.close_unused(m, {KIND})
        assert [family.is_closed for family in opened.families] == [True, True, False, False]
        assert len(node.driver.running) == 3
        for family in opened.families:
            opened.end(family)


def test_need_and_request_name_the_same_kind() -> None:
    assert Kind.of(Need.of(request_for("a"))) == KIND
    assert KIND.build_id == BUILD_ID
