"""Blocks and slots: who may use which ids and addresses."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.node import slots
from cloche_server.node.slots import BLOCKS, SLOTS, Block, BlockProbe, Slots, claim_block
from cloche_wire.errors import ResourceExhausted, Unavailable


def nobody(_: int) -> bool:
    return False


class Claimers:
    """Servers of one machine, by their state folders; all let go at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held: list[Block] = []

    def claim(self, name: str, is_in_use: object = nobody) -> Block:
        block = claim_block(self.folder, Path("/servers") / name, is_in_use)  # type: ignore[arg-type]
        self.held.append(block)
        return block

    def dies(self, block: Block) -> None:
        """Its process is gone: the lock is, the claim is not."""
        self.held.remove(block)
        slots.os.close(block._lock)


@pytest.fixture
def claimers(tmp_path: Path) -> Iterator[Claimers]:
    made = Claimers(tmp_path / "blocks")
    yield made
    for block in made.held:
        slots.os.close(block._lock)


def test_two_servers_never_share_a_block(claimers: Claimers) -> None:
    assert claimers.claim("a").number != claimers.claim("b").number


def test_server_takes_the_block_it_had(claimers: Claimers) -> None:
    claimers.claim("a")
    second = claimers.claim("b")
    claimers.dies(second)
    assert claimers.claim("b").number == second.number


def test_own_block_is_taken_even_while_its_sandboxes_live(claimers: Claimers) -> None:
    first = claimers.claim("a")
    claimers.dies(first)
    assert claimers.claim("a", lambda _: True).number == first.number


def test_block_whose_sandboxes_outlived_its_server_is_nobody_elses(claimers: Claimers) -> None:
    first = claimers.claim("a")
    claimers.dies(first)
    assert claimers.claim("b", lambda number: number == first.number).number != first.number


def test_block_of_a_server_that_is_gone_with_its_sandboxes_is_free(claimers: Claimers) -> None:
    first = claimers.claim("a")
    claimers.dies(first)
    assert claimers.claim("b").number == first.number


def test_released_block_is_free(claimers: Claimers) -> None:
    first = claimers.claim("a")
    claimers.held.remove(first)
    first.release()
    assert (claimers.folder / str(first.number)).read_bytes() == b""
    assert claimers.claim("b").number == first.number


def test_torn_claim_is_nobodys(claimers: Claimers) -> None:
    claimers.folder.mkdir()
    (claimers.folder / "0").write_text('{"state": "/serv')
    assert claimers.claim("a").number == 0


def test_no_block_left_is_told(claimers: Claimers) -> None:
    with pytest.raises(Unavailable, match="27 blocks"):
        claimers.claim("a", lambda _: True)


def test_claim_is_written_down(claimers: Claimers) -> None:
    block = claimers.claim("a")
    written = msgspec.json.decode((claimers.folder / str(block.number)).read_bytes())
    assert written["state"] == "/servers/a"


@given(
    one=st.tuples(st.integers(0, 53), st.integers(0, 511)),
    other=st.tuples(st.integers(0, 53), st.integers(0, 511)),
)
def test_no_two_slots_of_the_machine_share_anything(one: tuple[int, int], other: tuple[int, int]) -> None:
    def owned(block: Block, slot: int) -> set[object]:
        return {block.address(slot), block.interface(slot), block.machine_slot(slot)}

    first, second = (owned(Block(number, -1), slot) for number, slot in (one, other))
    assert (first == second) if one == other else first.isdisjoint(second)


@given(number=st.integers(0, BLOCKS - 1), slot=st.integers(0, SLOTS - 1))
def test_addresses_of_a_block_lie_in_its_network(number: int, slot: int) -> None:
    from ipaddress import ip_network

    block = Block(number, -1)
    network = ip_network(block.network)
    assert block.gateway in network
    assert block.address(slot) in network
    assert block.address(slot) != block.gateway
    assert network.subnet_of(ip_network("198.18.0.0/15"))  # type: ignore[arg-type]
    assert len(block.interface(slot)) < 16


def test_interface_prefix_of_no_block_begins_anothers() -> None:
    prefixes = [Block(number, -1).interface_prefix for number in range(BLOCKS)]
    assert not any(one != other and other.startswith(one) for one in prefixes for other in prefixes)


def test_probe_sees_groups_of_either_version(tmp_path: Path) -> None:
    probe = BlockProbe(tmp_path)
    (tmp_path / "memory" / "cloche-3" / "iaaa").mkdir(parents=True)
    (tmp_path / "cloche-4" / "iaaa").mkdir(parents=True)
    (tmp_path / "pids" / "cloche-5").mkdir(parents=True)
    assert [number for number in range(BLOCKS) if probe(number)] == [3, 4]


def test_slots_go_in_a_circle() -> None:
    """A slot just given back is not the next one: late packets and ids of the old sandbox find nobody."""
    some = Slots(2)
    taken: list[int] = []
    for _ in range(SLOTS + 1):
        slot = some.take()
        taken.append(slot)
        some.give_back(slot)
    assert taken == [*range(SLOTS), 0]


def test_taken_slot_is_passed_over() -> None:
    some = Slots(10)
    some.adopt(1)
    some.adopt(0)
    assert some.take() == 2


def test_limit_is_told_and_giving_back_twice_frees_one() -> None:
    some = Slots(1)
    slot = some.take()
    with pytest.raises(ResourceExhausted, match="limit of 1"):
        some.take()
    some.give_back(slot)
    some.give_back(slot)
    some.take()
    with pytest.raises(ResourceExhausted):
        some.take()


def test_full_block_is_told_whatever_the_limit() -> None:
    some = Slots(10_000)
    assert {some.take() for _ in range(SLOTS // 2)} == set(range(SLOTS // 2))
    with pytest.raises(ResourceExhausted):
        some.take()


def test_reserved_slots_are_nobody_elses_and_always_leave_enough() -> None:
    """However much is reserved, as many as the limit says can be taken without a reservation."""
    some = Slots(SLOTS // 2)
    reserved: set[int] = set()
    while found := some.reserve(33):
        assert reserved.isdisjoint(found)
        reserved |= set(found)
    assert len(reserved) > SLOTS // 2 - 33
    assert reserved.isdisjoint({some.take() for _ in range(SLOTS // 2)})
    with pytest.raises(ResourceExhausted):
        some.take_reserved(min(reserved))


def test_what_was_reserved_is_anybodys_again() -> None:
    some = Slots(10)
    first = some.reserve(5)
    some.take_reserved(first[1])
    some.unreserve(first)
    some.unreserve(first)
    taken = [some.take() for _ in range(9)]
    assert first[1] not in taken
    assert some.taken == {*taken, first[1]}


@given(st.lists(st.one_of(st.just(None), st.integers(0, SLOTS - 1)), max_size=60))
def test_no_slot_is_given_out_twice(acts: list[int | None]) -> None:
    some = Slots(20)
    held: set[int] = set()
    for act in acts:
        if act is not None:
            some.give_back(act)
            held.discard(act)
        elif len(held) < 20:
            slot = some.take()
            assert slot not in held
            held.add(slot)
        assert some.taken == held
