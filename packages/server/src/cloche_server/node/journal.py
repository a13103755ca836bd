"""What the node has to know after it was killed: one small file per sandbox, written before each act.

A file is replaced by rename, so a reader sees the old record or the new one. Only what concerns paused
sandboxes is synced to disk: after a crash of the machine no process of a sandbox exists, the boot id has
changed, and every other record is undone anyway.
"""

from __future__ import annotations

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
    runtime_tree: str = ""
    """Name of the tree that its agent runs on."""
    is_frozen: bool = False
    """It may be standing still for a copy that a node that was killed was making."""

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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, record: Record) -> None:
        """Store a record in place of an older one of the same sandbox.

        Raises:
            OSError: The disk is full or broken; the older record is still there.
        """
        path = self._folder / f"{record.request.sandbox_id}.json"
        temporary = path.with_suffix(".new")
        is_durable = record.image is not None
        temporary.write_bytes(msgspec.json.encode(record))
        if is_durable:
            sync(temporary)
        temporary.replace(path)
        if is_durable:
            sync(self._folder)

    def remove(self, sandbox_id: str) -> None:
        """Forget a sandbox. Idempotent."""
        (self._folder / f"{sandbox_id}.json").unlink(missing_ok=True)

    def read_all(self) -> list[Record]:
        """Every record.

        One that cannot be read is dropped with a log line: its leftovers are found by their names.
        """
        records: list[Record] = []
        for path in self._folder.iterdir():
            try:
                if path.suffix == ".json":
                    records.append(msgspec.json.decode(path.read_bytes(), type=Record))
                    continue
            except msgspec.DecodeError:
                log.warning("journal.unreadable", file=path.name)
            path.unlink(missing_ok=True)
        return records
