"""What the node has to know after it was killed: one small file per sandbox, written before each act.

A newer record is a file with the next number, and the older one goes after it: a reader takes the newest,
and sees it whole, since it gets its name last. (A rename onto the older one would do as well, but ext4 begins
to write a file to disk when it replaces another so: 0.4 ms instead of 0.1.) Only what concerns paused
sandboxes is synced to disk, its name too before the older one goes: after a crash of the machine no process
of a sandbox exists, the boot id has changed, and every other record is undone anyway.
"""

from __future__ import annotations

import errno
import os
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from cloche_server.isolation.base import ProcessIdentity
from cloche_server.node.durability import sync
from cloche_server.node.lifecycle import State
from cloche_server.node.messages import CreateSandbox, EndReason, SandboxState, SetEgress

log = structlog.get_logger()


class Record(msgspec.Struct, frozen=True):
    """One sandbox, as the journal keeps it."""

    request: CreateSandbox
    state: State
    slot: int
    started_at: datetime
    end_at: datetime
    """Wall-clock end for people; `deadline_boot_s` rules."""
    deadline_boot_s: float
    """End by CLOCK_BOOTTIME, comparable within one boot."""
    boot_id: str
    isolation: str
    init: ProcessIdentity | None = None
    end_reason: EndReason | None = None
    image: str | None = None
    """Name of what is kept of it; counts in the states `paused` and `resuming`."""
    images_made: int = 0
    """So that each has a name of its own."""
    layers: tuple[str, ...] = ()
    """Names of those of kept files that it stands on, over its template's, uppermost first."""
    runtime_tree: str = ""
    """Name of the tree that its agent runs on."""
    shown_boot_id: str = ""
    """What it shows as the id of its boot, where that has to outlast a pause with memory."""
    is_build: bool = False
    """It is one of the node's own, for steps of a build, which nobody is told of."""
    is_frozen: bool = False
    """It stands still until something needs it, or may for a copy that a node that was killed was making."""
    is_idle: bool = False
    """It stands still because nothing happened in it."""

    def public(self) -> SandboxState:
        """What the api is told."""
        return SandboxState(
            self.request.sandbox_id,
            self.request.team_id,
            self.started_at,
            self.end_at,
            self.isolation,
            self.egress.digest,
            "paused" if self.state == "paused" else "running",
            self.is_frozen,
        )

    @property
    def egress(self) -> SetEgress:
        """What it may reach."""
        return SetEgress(self.request.sandbox_id, self.request.allow_internet, self.request.egress)


class Journal:
    """The records of one node, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made readable by root only, since records hold tokens."""
        self._folder = folder
        self._numbers: dict[str, int] = {}
        """By sandbox, that of its newest record."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, record: Record) -> None:
        """Store a record in place of an older one of the same sandbox.

        Raises:
            OSError: The disk is full or broken; the older record is still there.
        """
        sandbox_id = record.request.sandbox_id
        before = self._numbers.get(sandbox_id, 0)
        temporary, newer = self._folder / f"{sandbox_id}.new", self._path(sandbox_id, before + 1)
        is_durable = record.image is not None
        _write(temporary, msgspec.json.encode(record))
        if is_durable:
            sync(temporary)
        temporary.rename(newer)
        if is_durable:
            self._sync_name(newer)
        self._numbers[sandbox_id] = before + 1
        self._path(sandbox_id, before).unlink(missing_ok=True)

    def remove(self, sandbox_id: str) -> None:
        """Forget a sandbox. Idempotent."""
        self._path(sandbox_id, self._numbers.pop(sandbox_id, 0)).unlink(missing_ok=True)

    def read_all(self) -> list[Record]:
        """Every sandbox's newest record.

        One that cannot be read is dropped with a log line: an older one counts then, or the sandbox's
        leftovers are found by their names.
        """
        records: dict[str, Record] = {}
        for path in sorted(self._folder.iterdir(), key=_number, reverse=True):
            sandbox_id = path.name.partition(".")[0]
            if path.suffix == ".json" and sandbox_id not in records:
                try:
                    records[sandbox_id] = msgspec.json.decode(path.read_bytes(), type=Record)
                except msgspec.DecodeError:
                    log.warning("journal.unreadable", file=path.name)
                else:
                    self._numbers[sandbox_id] = _number(path)
                    continue
            path.unlink(missing_ok=True)
        return list(records.values())

    def _sync_name(self, newer: Path) -> None:
        try:
            sync(self._folder)
        except OSError:
            newer.unlink(missing_ok=True)  # what the caller is told has failed must not count after a restart
            raise

    def _path(self, sandbox_id: str, number: int) -> Path:
        # Without a number: as earlier versions wrote it.
        return self._folder / (f"{sandbox_id}.{number}.json" if number else f"{sandbox_id}.json")


def _number(path: Path) -> int:
    number = path.name.partition(".")[2].partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)
