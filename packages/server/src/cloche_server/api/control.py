"""What every endpoint works with."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple
from weakref import WeakValueDictionary

import anyio

from cloche_server.api.build_runs import BuildRuns
from cloche_server.api.template_registry import TemplateRegistry
from cloche_server.api.uploads import Uploads
from cloche_server.clock import Clock
from cloche_server.config import Config
from cloche_server.placement.base import Placement
from cloche_server.store.store import Store
from cloche_server.templates.node_workshop import NodeWorkshop
from cloche_server.templates.workshop import Workshop


class Creations:
    """What this process is making, removing, pausing or resuming: sandboxes, snapshots, volumes.

    A row that says so and is not here was left by a dead api.
    """

    def __init__(self) -> None:
        """Nothing is being made yet."""
        self._done: dict[str, anyio.Event] = {}
        self._ended: set[str] = set()

    def __contains__(self, sandbox_id: object) -> bool:
        return sandbox_id in self._done

    @contextmanager
    def hold(self, sandbox_id: str) -> Generator[None]:
        """Count the sandbox in: from before its row is written until after the row's next state."""
        self._done[sandbox_id] = anyio.Event()
        try:
            yield
        finally:
            self._done.pop(sandbox_id).set()
            self._ended.discard(sandbox_id)

    def note_end(self, sandbox_id: str) -> None:
        """Its node says that it is gone, which no row may know: that of a sandbox made ahead comes last."""
        if sandbox_id in self._done:
            self._ended.add(sandbox_id)

    def has_ended(self, sandbox_id: str) -> bool:
        """Whether that was said while it was being made."""
        return sandbox_id in self._ended

    async def wait(self, sandbox_id: str) -> None:
        """Return when the sandbox is no longer being made here."""
        if (event := self._done.get(sandbox_id)) is not None:
            await event.wait()


class Turns:
    """One act on a sandbox after another, where two at once could end in different orders here and there."""

    def __init__(self) -> None:
        """Nobody acts yet."""
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, sandbox_id: str) -> AsyncGenerator[None]:
        """Wait for the acts on that sandbox that began before."""
        lock = self._locks.setdefault(sandbox_id, anyio.Lock())
        async with lock:
            yield


class ControlPlane(NamedTuple):
    """The parts of the control plane, made once per process."""

    config: Config
    store: Store
    placement: Placement
    clock: Clock
    templates: TemplateRegistry
    creations: Creations
    network_changes: Turns
    pauses: Turns
    """Pauses, resumes and snapshots of a sandbox."""
    uploads: Uploads
    workshop: Workshop
    builds: BuildRuns

    @classmethod
    def assemble(
        cls,
        config: Config,
        store: Store,
        placement: Placement,
        clock: Clock,
        workshop: Workshop | None = None,
    ) -> "ControlPlane":
        """Put the parts together; templates are built on this machine's node unless told otherwise."""
        templates = TemplateRegistry(store.templates, store.template_tags, config.templates_dir, clock)
        uploads = Uploads(config.uploads_dir, clock, max_bytes=config.builds.max_upload_mib << 20)
        workshop = workshop or NodeWorkshop(config.node_socket)
        builds = BuildRuns(config, store, clock, templates, uploads, workshop)
        turns = (Turns(), Turns())
        return cls(config, store, placement, clock, templates, Creations(), *turns, uploads, workshop, builds)
