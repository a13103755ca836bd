"""Which sandboxes may share an interpreter that has imported their packages: those of one family.

A family is one team's, of one template build (design 3.1): its zygote has run that template's code, and is
forked into that team's sandboxes of it only. A family owns its slots while its zygote lives, so that no
other team's sandbox ever has user ids that the zygote can take on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cloche_server.isolation.base import Family
from cloche_server.node.demand import Need
from cloche_server.node.messages import CreateSandbox
from cloche_server.node.slots import Slots

SANDBOXES, FEWER_SANDBOXES = 128, 32
"""Of one family, and of one for which there are not that many slots any more. Its zygote takes some 90 MiB,
which they share: with 64 in each, a third of 100 sandboxes that came at once found the first family full and
the second one not ready, and each had an interpreter of its own for life, 76 MiB instead of 17."""
SPARE = 32
"""Free slots of a kind below which another family is opened: on busy cores that takes as long as so many
creates."""

MOST_AGE_S = 4 * 3600.0
"""After it a family gets no more sandboxes, once there is a fresh one.

All forks of a zygote have its layout of memory, its canaries and its hash seed: what the code of one sandbox
finds out of them helps against the next ones for so long. A new zygote costs 0.6 s of a core, and 90 MiB
until the last sandbox of the old one has gone.
"""
MOST_SANDBOXES = 1000
"""As for the age: 8 times its slots. At 200 creates a minute that is a new zygote every 5 minutes."""


class Kind(NamedTuple):
    """Whose sandboxes, of which build, and how they are isolated."""

    team_id: str
    build_id: str
    isolation: str

    @classmethod
    def of(cls, asked: Need | CreateSandbox) -> Kind:
        """That of a sandbox that is asked for."""
        return cls(asked.team_id, asked.build_id, asked.isolation)


@dataclass
class Kept:
    """One family that is open."""

    kind: Kind
    family_id: str
    folder: Path
    own_slot: int
    slots: deque[int]
    """Its sandboxes', the one used last at the end."""
    family: Family
    opened_boot_s: float
    """By the boot clock."""
    sandboxes: int = 0
    """How many it has had."""

    def is_outdated(self, boot_s: float) -> bool:
        """Whether a fresh family is to take its place."""
        return boot_s - self.opened_boot_s >= MOST_AGE_S or self.sandboxes >= MOST_SANDBOXES


class Families:
    """The open families of a node, and their slots."""

    def __init__(self, slots: Slots) -> None:
        """There is none yet."""
        self._slots = slots
        self._kept: list[Kept] = []

    @property
    def kept(self) -> tuple[Kept, ...]:
        """All that are open."""
        return tuple(self._kept)

    def reserve(self) -> tuple[int, ...]:
        """Slots for one more family, the zygote's own first; none where too few would be left."""
        return self._slots.reserve(1 + SANDBOXES) or self._slots.reserve(1 + FEWER_SANDBOXES)

    def give_back(self, slots: tuple[int, ...]) -> None:
        """There is no zygote of these slots any more: those that no sandbox is in can be used by any."""
        self._slots.unreserve(slots)

    def add(self, kept: Kept) -> None:
        """From here on sandboxes of its kind are put into it."""
        self._kept.append(kept)

    def remove(self, kept: Kept) -> bool:
        """From here on none are. False when that has been said before."""
        if kept not in self._kept:
            return False
        self._kept.remove(kept)
        return True

    def room(self, kind: Kind, boot_s: float) -> int:
        """How many more sandboxes of that kind would be in a fresh family."""
        fresh = [kept for kept in self._kept if kept.kind == kind and not kept.is_outdated(boot_s)]
        return len({slot for kept in fresh for slot in kept.slots} - self._slots.taken)

    def unused(self, wanted: Collection[Kind], boot_s: float) -> list[Kept]:
        """Those that nobody asks for, or that are outdated and replaced, and that no sandbox is left of.

        Of the outdated ones of a kind only the last may stay for the sandboxes that it has: each costs its
        memory and its slots.
        """
        found: list[Kept] = []
        replaced: set[Kind] = set()
        for kept in reversed(self._kept):
            is_replaced = kept.is_outdated(boot_s) and self.room(kept.kind, boot_s) > 0
            is_idle = self._slots.taken.isdisjoint(kept.slots)
            if (is_idle and (is_replaced or kept.kind not in wanted)) or (
                is_replaced and kept.kind in replaced
            ):
                found.append(kept)
            elif is_replaced:
                replaced.add(kept.kind)
        return found

    def place(self, kind: Kind, boot_s: float) -> tuple[int, Family | None]:
        """A slot for a sandbox that is to be started: of a family of its kind where there is one.

        Raises:
            ResourceExhausted: All are taken.
        """
        return self.take(kind, boot_s) or (self._slots.take(), None)

    def take(self, kind: Kind, boot_s: float) -> tuple[int, Family] | None:
        """A free slot of a family of that kind, a fresh one if there is one; None where there is none.

        Raises:
            ResourceExhausted: The limit of sandboxes is reached.
        """
        for kept in sorted(self._kept, key=lambda kept: kept.is_outdated(boot_s)):
            slot = self._free(kept) if kept.kind == kind else None
            if slot is not None:
                self._slots.take_reserved(slot)
                kept.slots.remove(slot)
                kept.slots.append(slot)
                kept.sandboxes += 1
                return slot, kept.family
        return None

    def _free(self, kept: Kept) -> int | None:
        taken = self._slots.taken
        return next((slot for slot in kept.slots if slot not in taken), None)
