"""Blocks and slots: one claim gives a sandbox its id range, its address and the names of its objects.

A machine has 27 blocks of 1024 slots. A server owns one block as long as it runs, or as long as any sandbox
of it does, so that two servers on one machine never share a range of user ids or an address. A slot is one
sandbox's place in the block.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import msgspec

from cloche_server.isolation.identity import boot_id
from cloche_wire.errors import ResourceExhausted, Unavailable

BLOCKS = 27
SLOTS = 1024
_ADDRESSES_PER_BLOCK = 2048
_FIRST_ADDRESS = IPv4Address(
    "198.18.0.0"
)  # RFC 2544's range: never routed, so it hides nobody's real address


class _Claim(msgspec.Struct):
    """What a block's file says of its owner."""

    state: str
    boot_id: str


class Addresses(NamedTuple):
    """The addresses of one slot."""

    gateway: IPv4Address
    sandbox: IPv4Address


class Block:
    """The block of this server, held by a file lock until the process ends."""

    def __init__(self, number: int, lock: int) -> None:
        """Take the block's number and the descriptor that holds its lock."""
        self.number = number
        self._lock = lock

    @property
    def gateway(self) -> IPv4Address:
        """The address that every sandbox of the block sees as its gateway and name server."""
        return _FIRST_ADDRESS + self.number * _ADDRESSES_PER_BLOCK + 1

    @property
    def network(self) -> str:
        """Every address of the block, in CIDR form."""
        return f"{_FIRST_ADDRESS + self.number * _ADDRESSES_PER_BLOCK}/21"

    @property
    def interface_prefix(self) -> str:
        """Begin of the names of our ends of the veth pairs.

        A hyphen follows, so that 5 is no prefix of 53.
        """
        return f"cl{self.number}-"

    def address(self, slot: int) -> IPv4Address:
        """The sandbox's address in that slot."""
        return self.gateway + 1 + slot

    def interface(self, slot: int) -> str:
        """The name of our end of the veth pair in that slot."""
        return f"{self.interface_prefix}{slot}"

    def machine_slot(self, slot: int) -> int:
        """The slot counted over all blocks, which selects the range of user ids."""
        return self.number * SLOTS + slot

    def release(self) -> None:
        """Give the block back; only when no sandbox of it is left."""
        os.ftruncate(self._lock, 0)
        os.close(self._lock)


def claim_block(folder: Path, state: Path, is_in_use: Callable[[int], bool]) -> Block:
    """Claim this server's block: the one it had before, else the first free one.

    Args:
        folder: Where the machine's block files lie, the same for every server.
        state: This server's state folder: who the owner is.
        is_in_use: Tells whether sandboxes of a block exist, by kernel state. A block whose server was
        killed is not free
            while its sandboxes live.

    Raises:
        Unavailable: Every block is taken.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    own, free = _survey(folder, str(state))
    for number in [*own, *free]:
        lock = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if number not in own and is_in_use(number):
            os.close(lock)
            continue
        os.ftruncate(lock, 0)
        os.pwrite(lock, msgspec.json.encode(_Claim(str(state), boot_id())), 0)
        return Block(number, lock)
    raise Unavailable(
        f"all {BLOCKS} blocks of this machine are taken", hint=f"see {folder}; end servers not in use"
    )


def _survey(folder: Path, state: str) -> tuple[list[int], list[int]]:
    """Numbers of the blocks that were ours, and of the others."""
    own: list[int] = []
    others: list[int] = []
    for number in range(BLOCKS):
        try:
            claim = msgspec.json.decode((folder / str(number)).read_bytes(), type=_Claim)
        except (FileNotFoundError, msgspec.DecodeError):
            claim = None
        (own if claim is not None and claim.state == state else others).append(number)
    return own, others


class BlockProbe:
    """Tells whether sandboxes of a block exist: a group of it does in any hierarchy."""

    def __init__(self, cgroup_root: Path = Path("/sys/fs/cgroup")) -> None:
        """Take the folder that the hierarchies are mounted below."""
        self._root = cgroup_root

    def __call__(self, number: int) -> bool:
        """Whether any sandbox of that block is there."""
        candidates = [self._root / f"cloche-{number}", *self._root.glob(f"*/cloche-{number}")]
        return any(child.is_dir() for folder in candidates if folder.is_dir() for child in folder.iterdir())


class Slots:
    """Which slots of the block are taken. Handed out in a circle, so that none is used again soon."""

    def __init__(self, limit: int) -> None:
        """Take how many may be in use at once."""
        self._limit = min(limit, SLOTS // 2)
        self._taken: set[int] = set()
        self._reserved: set[int] = set()
        self._next = 0

    def take(self) -> int:
        """Take a free slot that is reserved for nobody.

        Raises:
            ResourceExhausted: The limit is reached.
        """
        self._check_limit()
        slot = self._free()
        self._taken.add(slot)
        return slot

    def take_reserved(self, slot: int) -> None:
        """Take a free slot of a reservation.

        Raises:
            ResourceExhausted: The limit is reached.
        """
        self._check_limit()
        self._taken.add(slot)

    def reserve(self, count: int) -> tuple[int, ...]:
        """Keep free slots from everybody who asks for any; none when too few would be left for those."""
        if len(self._reserved) + count > SLOTS - self._limit:
            return ()
        found: list[int] = []
        for _ in range(count):
            found.append(self._free())
            self._reserved.add(found[-1])
        return tuple(found)

    def unreserve(self, slots: Iterable[int]) -> None:
        """Let everybody have them, once they are free. Idempotent."""
        self._reserved.difference_update(slots)

    def _check_limit(self) -> None:
        if len(self._taken) >= self._limit:
            raise ResourceExhausted(
                f"limit of {self._limit} sandboxes reached: {len(self._taken)} are alive",
                hint="kill one, or raise limits.max_sandboxes",
            )

    def _free(self) -> int:
        while self._next in self._taken or self._next in self._reserved:
            self._next = (self._next + 1) % SLOTS
        slot = self._next
        self._next = (slot + 1) % SLOTS
        return slot

    def adopt(self, slot: int) -> None:
        """Mark a slot as taken by a sandbox of an earlier run."""
        self._taken.add(slot)
        self._next = max(self._next, (slot + 1) % SLOTS)

    def give_back(self, slot: int) -> None:
        """Free a slot, once nothing of its sandbox is left. Idempotent."""
        self._taken.discard(slot)

    @property
    def taken(self) -> frozenset[int]:
        """The slots in use."""
        return frozenset(self._taken)
