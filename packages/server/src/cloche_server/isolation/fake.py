"""A driver without isolation, for tests of everything above it: the init is a plain process of this machine.

It passes the same conformance suite as the real drivers, but for what only isolation can show. No
configuration selects it. A sandbox's processes are found by a variable in their environment, which stands in
for a control group: so a driver of a later run finds them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cloche_server.isolation import identity
from cloche_server.isolation.base import (
    Capabilities,
    Family,
    FamilySpec,
    ProcessIdentity,
    Program,
    SandboxSpec,
    Usage,
)
from cloche_wire.errors import Internal

_MOUNT_POINT = "/.cloche"
_MARK = "CLOCHE_FAKE_SANDBOX"
_FIRST_DESCRIPTOR = 3


class FakeDriver:
    """Processes of this machine in the place of sandboxes."""

    def capabilities(self) -> Capabilities:
        """See `Driver.capabilities`."""
        return Capabilities(name="fake", shares_host_kernel=True)

    def goes_on_over(self, layers: Sequence[Path]) -> bool:
        """See `Driver.goes_on_over`; this one says no `memory_snapshot`."""
        return False

    def prepare(self, program: Program | None = None) -> None:
        """See `Driver.prepare`; nothing is needed."""

    async def open_family(self, spec: FamilySpec) -> Family:
        """See `Driver.open_family`; this one says no `families`."""
        raise Internal("no families here")

    async def start(self, spec: SandboxSpec) -> ProcessIdentity:
        """See `Driver.start`.

        The runtime tree is not mounted: its mount point in `argv` is replaced by its place.
        """
        argv = [word.replace(_MOUNT_POINT, str(spec.runtime_tree)) for word in spec.argv]
        try:
            pid = os.posix_spawn(  # noqa: ASYNC221 - returns as soon as the program is loaded
                argv[0], argv, spec.env | {_MARK: spec.sandbox_id},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    *_closes(spec.listeners), *_moves(spec.listeners),
                ],
                setsid=True,
            )  # fmt: skip
        except OSError as error:
            raise Internal(f"cannot start the sandbox: {error}") from error
        # The kernel lets us go on a moment before it shows the new environment, by which we would find it.
        while (init := identity.identify(pid)) is not None:
            if any(process == init for _, process in _marked([pid])):
                return init
            await asyncio.sleep(0)
        _reap(pid)
        raise Internal("cannot start the sandbox: its init ended at once")

    async def freeze(self, sandbox_id: str, folder: Path) -> None:
        """See `Driver.freeze`; this one says no `freezes`."""
        raise Internal("no freezing here")

    async def thaw(self, sandbox_id: str, folder: Path) -> None:
        """See `Driver.thaw`; this one says no `freezes`."""
        raise Internal("no freezing here")

    def reclaim(self, sandbox_id: str) -> None:
        """See `Driver.reclaim`; there is nothing to give back."""

    async def save(self, sandbox_id: str, folder: Path, image: Path) -> tuple[str, ...]:
        """See `Driver.save`; this one says no `memory_snapshot`."""
        raise Internal("no images here")

    async def destroy(self, sandbox_id: str, folder: Path, init: ProcessIdentity | None) -> None:
        """See `Driver.destroy`."""
        while found := [process for owner, process in _marked() if owner == sandbox_id]:
            for process in found:
                identity.kill(process)
                await identity.wait_for_exit(process)
                _reap(process.pid)
        if init is not None and not identity.is_same(init):
            _reap(init.pid)

    def is_alive(self, init: ProcessIdentity) -> bool:
        """See `Driver.is_alive`."""
        return identity.is_same(init)

    async def wait(self, init: ProcessIdentity) -> None:
        """See `Driver.wait`."""
        await identity.wait_for_exit(init)

    def usage(self, sandbox_id: str) -> Usage:
        """See `Driver.usage`; only the number of processes is known."""
        return Usage(0, 0.0, sum(1 for owner, _ in _marked() if owner == sandbox_id))

    def leftovers(self) -> set[str]:
        """See `Driver.leftovers`."""
        return {owner for owner, _ in _marked()}

    def close(self) -> None:
        """See `Driver.close`; nothing is held."""


def _closes(kept: tuple[int, ...]) -> list[tuple[int, int]]:
    """What the child closes: descriptors that we inherited ourselves and would hand on."""
    numbers = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    unwanted: list[tuple[int, int]] = []
    for number in numbers:
        with contextlib.suppress(OSError):  # that of the listing is closed again
            if number >= _FIRST_DESCRIPTOR and number not in kept and os.get_inheritable(number):
                unwanted.append((os.POSIX_SPAWN_CLOSE, number))
    return unwanted


def _moves(listeners: tuple[int, ...]) -> list[tuple[int, int, int] | tuple[int, int]]:
    """What the child does to have the listeners as 3, 4, ...

    By way of numbers above all of them, so that none is overwritten that is still to be moved.
    """
    above = max((_FIRST_DESCRIPTOR + len(listeners), *listeners)) + 1
    lifted = [(os.POSIX_SPAWN_DUP2, number, above + place) for place, number in enumerate(listeners)]
    lowered = [
        (os.POSIX_SPAWN_DUP2, above + place, _FIRST_DESCRIPTOR + place) for place in range(len(listeners))
    ]
    closed = [(os.POSIX_SPAWN_CLOSE, above + place) for place in range(len(listeners))]
    return [*lifted, *lowered, *closed]


def _marked(pids: Iterable[int] | None = None) -> Iterator[tuple[str, ProcessIdentity]]:
    """Every process of a sandbox, with the sandbox's id; of the given processes, or of all."""
    prefix = f"{_MARK}=".encode()
    if pids is None:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    for pid in pids:
        with contextlib.suppress(OSError):
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                process = identity.identify(pid) if variable.startswith(prefix) else None
                if process is not None:
                    yield os.fsdecode(variable.removeprefix(prefix)), process


def _reap(pid: int) -> None:
    """Take a zombie away, if it is a child of ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
