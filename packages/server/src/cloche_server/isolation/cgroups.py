"""Control groups of sandboxes, on version 1 hierarchies and on version 2 alike.

One group `cloche-<block>` holds one group per sandbox, in every hierarchy we use. Limits are written before
the first process enters. See: kernel documentation, admin-guide/cgroup-v1 and admin-guide/cgroup-v2.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from pathlib import Path
from typing import Protocol

from cloche_server.isolation.base import ResourceLimits, Usage
from cloche_wire.errors import Internal, Unavailable

CONTROLLERS = ("memory", "pids", "cpu")
_OPTIONAL = ("cpuacct", "freezer")
"""Of the first version; where the machine has them, groups stand in them too."""
CPU_PERIOD_US = 100_000
_REMOVE_ATTEMPTS = 100
_FREEZE_ATTEMPTS = 1000


class Hierarchy(Protocol):
    """One version's way of saying the same things."""

    def folders(self, name: str) -> list[Path]:
        """The group's folder in each hierarchy."""
        ...

    def limit(self, name: str, limits: ResourceLimits) -> None:
        """Write the limits of an existing, still empty group."""
        ...

    def usage(self, name: str) -> Usage:
        """What the group uses now."""
        ...

    @property
    def freezes(self) -> bool:
        """Whether groups can be made to stand still here."""
        ...

    def set_frozen(self, name: str, *, is_frozen: bool) -> None:
        """Have the processes of a group stand still before long, or go on."""
        ...

    def is_frozen(self, name: str) -> bool:
        """Whether all of them stand still."""
        ...

    def reclaim(self, name: str) -> None:
        """Have the kernel take back what memory of the group it can without losing anything."""
        ...


class VersionOne:
    """Separate hierarchies, each with its own folder tree."""

    def __init__(self, mounts: dict[str, Path]) -> None:
        """Take the mount point of each controller; two may share one (`cpu,cpuacct`)."""
        self._mounts = mounts

    def folders(self, name: str) -> list[Path]:
        """See `Hierarchy.folders`."""
        return list(dict.fromkeys(mount / name for mount in self._mounts.values()))

    def limit(self, name: str, limits: ResourceLimits) -> None:
        """See `Hierarchy.limit`.

        Memory with swap is limited to the same value, where the kernel counts swap.
        """
        memory = self._mounts["memory"] / name
        size = str(limits.memory_mib * 1024 * 1024)
        _write(memory / "memory.limit_in_bytes", size)
        if (memory / "memory.memsw.limit_in_bytes").exists():
            _write(memory / "memory.memsw.limit_in_bytes", size)
        _write(self._mounts["pids"] / name / "pids.max", str(limits.pids))
        cpu = self._mounts["cpu"] / name
        _write(cpu / "cpu.cfs_period_us", str(CPU_PERIOD_US))
        _write(cpu / "cpu.cfs_quota_us", str(limits.cpu_count * CPU_PERIOD_US))

    def usage(self, name: str) -> Usage:
        """See `Hierarchy.usage`."""
        cpu = self._mounts.get("cpuacct", self._mounts["cpu"]) / name / "cpuacct.usage"
        memory = self._mounts["memory"] / name
        return Usage(
            _read(memory / "memory.usage_in_bytes"),
            _read(cpu) / 1e9,
            _read(self._mounts["pids"] / name / "pids.current"),
            _read_fields(
                self._mounts["memory"] / name / "memory.stat", b"total_inactive_file", b"total_active_file"
            ),
        )

    @property
    def freezes(self) -> bool:
        """See `Hierarchy.freezes`."""
        return "freezer" in self._mounts

    def set_frozen(self, name: str, *, is_frozen: bool) -> None:
        """See `Hierarchy.set_frozen`."""
        _write(self._state(name), "FROZEN" if is_frozen else "THAWED")

    def is_frozen(self, name: str) -> bool:
        """See `Hierarchy.is_frozen`; until then the file says FREEZING."""
        return _content(self._state(name)).strip() == b"FROZEN"

    def reclaim(self, name: str) -> None:
        """See `Hierarchy.reclaim`."""
        _write(self._mounts["memory"] / name / "memory.force_empty", "0")

    def _state(self, name: str) -> Path:
        return self._mounts["freezer"] / name / "freezer.state"


class VersionTwo:
    """The unified hierarchy."""

    def __init__(self, mount: Path) -> None:
        """Take the mount point of cgroup2."""
        self._mount = mount

    def folders(self, name: str) -> list[Path]:
        """See `Hierarchy.folders`."""
        return [self._mount / name]

    def limit(self, name: str, limits: ResourceLimits) -> None:
        """See `Hierarchy.limit`. No swap; the kernel picks one victim instead of ending the whole group."""
        folder = self._mount / name
        _write(folder / "memory.max", str(limits.memory_mib * 1024 * 1024))
        if (folder / "memory.swap.max").exists():
            _write(folder / "memory.swap.max", "0")
        _write(folder / "pids.max", str(limits.pids))
        _write(folder / "cpu.max", f"{limits.cpu_count * CPU_PERIOD_US} {CPU_PERIOD_US}")

    def usage(self, name: str) -> Usage:
        """See `Hierarchy.usage`."""
        folder = self._mount / name
        return Usage(
            _read(folder / "memory.current"),
            _read_field(folder / "cpu.stat", b"usage_usec") / 1e6,
            _read(folder / "pids.current"),
            self._cache_bytes(name),
        )

    @property
    def freezes(self) -> bool:
        """See `Hierarchy.freezes`; every kernel with idmapped mounts has it."""
        return True

    def set_frozen(self, name: str, *, is_frozen: bool) -> None:
        """See `Hierarchy.set_frozen`."""
        _write(self._mount / name / "cgroup.freeze", "1" if is_frozen else "0")

    def is_frozen(self, name: str) -> bool:
        """See `Hierarchy.is_frozen`."""
        return _read_field(self._mount / name / "cgroup.events", b"frozen") == 1

    def reclaim(self, name: str) -> None:
        """See `Hierarchy.reclaim`. The kernel says EAGAIN where it found less than was asked for."""
        try:
            _write(self._mount / name / "memory.reclaim", str(self._cache_bytes(name)))
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise

    def _cache_bytes(self, name: str) -> int:
        return _read_fields(self._mount / name / "memory.stat", b"inactive_file", b"active_file")

    def delegate(self) -> None:
        """Hand our controllers down from the root to the groups below (cgroup-v2, "Top-down constraint")."""
        _write(self._mount / "cgroup.subtree_control", " ".join(f"+{name}" for name in CONTROLLERS))


def detect(mountinfo: str) -> Hierarchy:
    """Find out which version this machine uses for the controllers we need.

    Args:
        mountinfo: Text of /proc/self/mountinfo.

    Raises:
        Unavailable: A controller is in no hierarchy; the message names it.
    """
    mounts: dict[str, Path] = {}
    unified: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        point = Path(before.split()[4])
        if kind == "cgroup2":
            unified = point
        elif kind == "cgroup":
            mounts |= {name: point for name in options.split(",") if name in (*CONTROLLERS, *_OPTIONAL)}
    missing = [name for name in CONTROLLERS if name not in mounts]
    if not missing:
        return VersionOne(mounts)
    if unified is not None:
        offered = (unified / "cgroup.controllers").read_text().split()
        missing = [name for name in CONTROLLERS if name not in offered]
        if not missing:
            return VersionTwo(unified)
    raise Unavailable(
        f"cgroup controllers missing: {', '.join(missing)}",
        hint="mount the hierarchies, or boot with cgroup v2",
    )


class SandboxGroups:
    """The groups of one server's sandboxes, below one parent."""

    def __init__(self, hierarchy: Hierarchy, parent: str) -> None:
        """Keep the parent's name, `cloche-<block>`."""
        self._hierarchy = hierarchy
        self._parent = parent

    def prepare(self) -> None:
        """Make the parent group, once per start of the node."""
        if isinstance(self._hierarchy, VersionTwo):
            self._hierarchy.delegate()
        for folder in self._hierarchy.folders(self._parent):
            folder.mkdir(exist_ok=True)
            if isinstance(self._hierarchy, VersionTwo):
                _write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in CONTROLLERS))

    def create(self, sandbox_id: str, limits: ResourceLimits) -> list[Path]:
        """Make a sandbox's groups with their limits, and return the files that take a pid to enter them.

        Raises:
            Internal: A group or a limit could not be written; the message names the file.
        """
        name = f"{self._parent}/{sandbox_id}"
        try:
            try:
                self._make(name)
            except FileNotFoundError:
                # Who tidies up on a machine removes empty groups, and so the parent while no sandbox runs.
                self.prepare()
                self._make(name)
            self._hierarchy.limit(name, limits)
        except OSError as error:
            raise Internal(f"cannot limit the sandbox: {error.filename}: {error.strerror}") from error
        return [folder / "cgroup.procs" for folder in self._hierarchy.folders(name)]

    def _make(self, name: str) -> None:
        """Make a group in each hierarchy; one that is there already is an error."""
        made: list[Path] = []
        try:
            for folder in self._hierarchy.folders(name):
                folder.mkdir()
                made.append(folder)
        except OSError:
            for folder in made:
                folder.rmdir()
            raise

    def pids(self, sandbox_id: str) -> set[int]:
        """Every process in the sandbox's groups."""
        found: set[int] = set()
        for folder in self._hierarchy.folders(f"{self._parent}/{sandbox_id}"):
            with contextlib.suppress(FileNotFoundError, OSError):
                found |= {int(line) for line in (folder / "cgroup.procs").read_text().split()}
        return found

    async def remove(self, sandbox_id: str) -> None:
        """Remove a sandbox's groups; they are empty or about to be. Idempotent.

        The kernel answers EBUSY for a moment after the last process has gone, hence the attempts, 10 ms
        apart.
        """
        for folder in self._hierarchy.folders(f"{self._parent}/{sandbox_id}"):
            for attempt in range(_REMOVE_ATTEMPTS):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or attempt == _REMOVE_ATTEMPTS - 1:
                        raise Internal(
                            f"cannot remove the control group: {folder}: {error.strerror}"
                        ) from error
                    await asyncio.sleep(0.01)
                else:
                    break

    @property
    def freezes(self) -> bool:
        """Whether sandboxes can be made to stand still on this machine."""
        return self._hierarchy.freezes

    async def freeze(self, sandbox_id: str) -> None:
        """Have every process of a sandbox stand still. Idempotent.

        The kernel does not tell when they do, which is within a millisecond unless one of them waits for a
        disk; hence the attempts, 1 ms apart.

        Raises:
            Internal: They do not, within a second; they go on then.
        """
        name = f"{self._parent}/{sandbox_id}"
        try:
            self._hierarchy.set_frozen(name, is_frozen=True)
            for _ in range(_FREEZE_ATTEMPTS):
                if self._hierarchy.is_frozen(name):
                    return
                await asyncio.sleep(0.001)
        except OSError as error:
            raise Internal(f"cannot freeze the sandbox: {error.filename}: {error.strerror}") from error
        self.thaw(sandbox_id)
        raise Internal("cannot freeze the sandbox: a process of it does not stand still")

    def thaw(self, sandbox_id: str) -> None:
        """Have the processes of a sandbox go on. Idempotent; one that is gone is a success.

        Raises:
            Internal: The kernel refuses.
        """
        if not self._hierarchy.freezes:
            return
        try:
            self._hierarchy.set_frozen(f"{self._parent}/{sandbox_id}", is_frozen=False)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Internal(f"cannot thaw the sandbox: {error.filename}: {error.strerror}") from error

    def reclaim(self, sandbox_id: str) -> None:
        """Give back what memory of a sandbox the kernel can take without losing anything. Blocks.

        Without swap that is the cache of files alone. Nothing depends on it, so failures are no news.
        """
        with contextlib.suppress(OSError):
            self._hierarchy.reclaim(f"{self._parent}/{sandbox_id}")

    def usage(self, sandbox_id: str) -> Usage:
        """What the sandbox uses now; zeros when it is gone."""
        return self._hierarchy.usage(f"{self._parent}/{sandbox_id}")

    def names(self) -> set[str]:
        """Ids of every sandbox that has a group in any hierarchy."""
        found: set[str] = set()
        for folder in self._hierarchy.folders(self._parent):
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                found |= {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        return found

    def remove_parent(self) -> None:
        """Remove the parent when no sandbox is left; leave it otherwise."""
        for folder in self._hierarchy.folders(self._parent):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        error.filename = str(path)
        raise


def _read(path: Path) -> int:
    try:
        return int(_content(path))
    except (OSError, ValueError):
        return 0


def _read_field(path: Path, name: bytes) -> int:
    """Value of one line of a file of `name value` lines; 0 where there is none."""
    return _read_fields(path, name)


def _read_fields(path: Path, *names: bytes) -> int:
    """Sum of the values of these lines."""
    try:
        # With a line break before every name, no name is taken for the end of a longer one.
        text = b"\n" + _content(path)
    except OSError:
        return 0
    parts = (text.partition(b"\n" + name + b" ") for name in names)
    return sum(int(rest.partition(b"\n")[0]) for _, found, rest in parts if found)


def _content(path: Path) -> bytes:
    # By hand, since every sandbox is asked every few seconds: a file object takes four times as long.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 16_384)
    finally:
        os.close(descriptor)
