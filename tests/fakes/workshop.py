"""A workshop without a node: commands are looked up in a dict, layers are counted."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from cloche_server.templates.workshop import (
    Command,
    CopyIn,
    FetchedImage,
    Finished,
    ImageSource,
    Layer,
    OnLine,
    PreparedBase,
    Pruned,
    Setting,
)
from cloche_wire.errors import ClocheError, InvalidArgument, NotFound


class FakeBench:
    """See `cloche_server.templates.workshop.Bench`."""

    def __init__(self, workshop: "FakeWorkshop") -> None:
        self._workshop = workshop

    async def run(self, command: Command, on_line: OnLine) -> int:
        workshop = self._workshop
        workshop.ran.append(command)
        words = command.argv[-1]
        for line in workshop.prints.get(words, ()):
            await on_line("stdout", line)
        if workshop.gate is not None and words in workshop.waits:
            await workshop.gate.wait()
        if words in workshop.breaks:
            raise workshop.breaks[words]
        return workshop.fails.get(words, 0)

    async def copy_in(self, files: CopyIn) -> None:
        assert files.archive.exists()
        if b"not an archive" in files.archive.read_bytes():
            raise InvalidArgument("tar: this does not look like a tar archive")
        self._workshop.copied.append(files)

    async def change(self, *words: str) -> str:
        self._workshop.changed.append(words)
        match words:
            case ("user", name):
                return name
            case ("home", name):
                return next(iter(self._workshop.homes.get(name, ())), "")
            case _:
                return ""

    async def apply_layer(self, image: FetchedImage, digest: str) -> None:
        self._workshop.applied.append(digest)

    async def prepare_base(self, on_line: OnLine) -> PreparedBase:
        self._workshop.prepared += 1
        await on_line("stdout", "adding bash by apk")
        return self._workshop.base

    async def apply_upload(self, archive: Path) -> None:
        self._workshop.applied.append(archive.name)

    async def commit(self) -> Layer:
        workshop = self._workshop
        workshop.committed += 1
        return Layer(f"layer{workshop.committed}", 1, 1)


class FakeWorkshop:
    """See `cloche_server.templates.workshop.Workshop`."""

    def __init__(self) -> None:
        self.prints: dict[str, list[str]] = {}
        """What a command writes, by its last word."""
        self.homes = {"user": ["/home/user"], "root": ["/root"], "worker": ["/home/worker"]}
        """What the image says of its users."""
        self.fails: dict[str, int] = {}
        """The exit status of a command that fails."""
        self.breaks: dict[str, ClocheError] = {}
        """What is raised in the place of a command."""
        self.gate: anyio.Event | None = None
        self.waits: set[str] = set()
        """Commands that wait for the gate."""
        self.fails_publish: ClocheError | None = None
        self.ran: list[Command] = []
        self.changed: list[tuple[str, ...]] = []
        """By programs of ours."""
        self.copied: list[CopyIn] = []
        self.applied: list[str] = []
        """Layers, by their names."""
        self.settings: list[Setting] = []
        """Of every bench there has been."""
        self.open = 0
        self.committed = 0
        self.published: list[Finished] = []
        self.removed: list[str] = []
        self.layers: list[str] = []
        """All that are kept, oldest first, as far as a test minds."""
        self.squashed: list[tuple[str, ...]] = []
        self.registry: dict[str, str] = {}
        """Manifests by the names that are asked for."""
        self.config = "{}"
        """Of every image."""
        self.read: list[ImageSource] = []
        self.fetched: list[tuple[ImageSource, tuple[str, ...]]] = []
        """Images, and what of them was known."""
        self.applied: list[str] = []
        self.prepared = 0
        self.base = PreparedBase("/bin/bash", is_complete=True)
        """What comes of preparing one."""

    @property
    def commands(self) -> list[str]:
        """The last words of what was run."""
        return [command.argv[-1] for command in self.ran]

    @asynccontextmanager
    async def bench(self, setting: Setting) -> AsyncGenerator[FakeBench]:
        self.settings.append(setting)
        self.open += 1
        try:
            yield FakeBench(self)
        finally:
            self.open -= 1

    async def read_image(self, source: ImageSource) -> str:
        self.read.append(source)
        if source.name not in self.registry:
            raise NotFound(f"no such image: {source.name}")
        return self.registry[source.name]

    @asynccontextmanager
    async def image(
        self, source: ImageSource, known: tuple[str, ...], max_bytes: int
    ) -> AsyncGenerator[FetchedImage]:
        self.fetched.append((source, known))
        yield FetchedImage("p" * 32, self.registry[source.name], self.config)

    async def image_root(self) -> str:
        return "image root"

    async def publish(self, finished: Finished, on_line: OnLine) -> None:
        if self.fails_publish is not None:
            raise self.fails_publish
        self.published.append(finished)

    async def squash(self, team_id: str, layers: tuple[str, ...], below: tuple[str, ...]) -> Layer:
        assert below, "a chain keeps its lowest"
        self.squashed.append(layers)
        return Layer(f"squashed{len(self.squashed)}", 1, 1)

    async def prune(self, kept: Sequence[str], *, most: int, dry_run: bool) -> Pruned:
        free = tuple(layer for layer in self.layers if layer not in kept)[:most]
        if not dry_run:
            self.layers = [layer for layer in self.layers if layer not in free]
        return Pruned(dict.fromkeys(free, 1))

    async def remove(self, build_id: str) -> None:
        self.removed.append(build_id)
