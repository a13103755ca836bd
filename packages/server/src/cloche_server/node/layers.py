"""What sandboxes are made of: folders of files that lie over each other, each kept once for all that have it.

    STATE/layers/<name>/        complete: it got its name last
        fs/                     the files, with the ids of the inside; what hides others, as overlayfs has it
        layer.json              `Layer`
    STATE/layers/<name>.new/    being made; nobody's after a crash

A name that begins with `layer-` is that of a step of a build. One that begins with `files-` holds what a
sandbox has written, and is there as long as an image or a sandbox stands on it (`kept_files`). Any other name
is the id of a build that has a root of its own, which every template made of it has as its lowest layer. Only
root gets into the folder: layers hold set-user-id programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

import msgspec

from cloche_server.ids import is_build_id
from cloche_server.isolation.overlay import MOST_LAYERS
from cloche_server.node import trees
from cloche_server.node.durability import sync, sync_all_below
from cloche_server.node.templates import Template, Templates
from cloche_wire.errors import InvalidArgument, NotFound, TemplateNotFound, TooLarge

PREFIX, KEPT_PREFIX = "layer-", "files-"
_NAME = re.compile(r"(layer|files)-[0-9a-f]{32}\Z")
_FILES, _ABOUT, _UNFINISHED = "fs", "layer.json", ".new"


class Layer(msgspec.Struct, frozen=True):
    """What is known of one."""

    name: str
    team_id: str
    """Whose build or sandbox has made it."""
    size_bytes: int
    entries: int
    created_at: datetime
    sha256: str = ""
    """What it must be (`trees.sum_of`); empty for one whose sum nobody has needed yet."""


class Layers:
    """All that this node has."""

    def __init__(self, folder: Path, templates: Templates, discard: Callable[[Path], None]) -> None:
        """Take their folder, the templates, and what removes a folder in time."""
        self._folder = folder
        self._templates = templates
        self._discard = discard
        self.being_made: list[list[str]] = []
        """Names that nothing names yet, by who makes them; see `kept_files`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def of_template(self, build_id: str, template: Template) -> tuple[Path, ...]:
        """The folders that make the root of a finished build, uppermost first.

        Raises:
            TemplateNotFound: One is gone.
        """
        if not template.layers:
            return (self._templates.folder(build_id) / template.rootfs,)
        try:
            return self.folders(template.layers)
        except NotFound as error:
            raise TemplateNotFound(f"build {build_id} cannot be used any more: {error.message}") from error

    def folders(self, names: Collection[str]) -> tuple[Path, ...]:
        """The folders of these layers, in their order.

        Raises:
            InvalidArgument: There are none, or more than one root can have.
            NotFound: One is not there.
        """
        if not 0 < len(names) <= MOST_LAYERS:
            raise InvalidArgument(f"not a number of layers: {len(names)}", hint=f"at most {MOST_LAYERS}")
        return tuple(map(self._folder_of, names))

    def _folder_of(self, name: str) -> Path:
        if _NAME.match(name):
            if (self._folder / name / _ABOUT).exists():
                return self._folder / name / _FILES
        elif is_build_id(name):
            template = self._templates.read(name)
            if not template.layers:
                return self._templates.folder(name) / template.rootfs
        raise NotFound(f"no such layer: {name[:80]}")

    def has(self, name: str) -> bool:
        """Whether that one is complete."""
        return bool(_NAME.match(name)) and (self._folder / name / _ABOUT).exists()

    def begin(self, prefix: str = PREFIX, *, name: str = "") -> str:
        """Make a place for a new one, return its name; `commit` makes it complete, `abandon` takes it away.

        Args:
            prefix: Of a new name.
            name: Of one that is always the same; empty: a new name.

        Raises:
            OSError: The disk is full, or it is there already.
        """
        name = name or prefix + token_hex(16)
        (self._folder / f"{name}{_UNFINISHED}").mkdir(mode=0o700)
        return name

    def begun(self, name: str) -> Path:
        """Where the files of one go that was begun; there is nothing there yet."""
        return self._folder / f"{name}{_UNFINISHED}" / _FILES

    def commit(
        self,
        name: str,
        team_id: str,
        size_bytes: int,
        entries: int,
        *,
        sha256: str = "",
        is_synced: bool = True,
    ) -> Layer:
        """Have what was begun count from here on, also after a crash of the machine: it is on disk before.

        One that is not `is_synced` counts until such a crash, and after it once `sync` has been called.

        Raises:
            OSError: The disk is full or broken; it is still only begun.
        """
        layer = Layer(name, team_id, size_bytes, entries, datetime.now(UTC), sha256)
        begun = self._folder / f"{name}{_UNFINISHED}"
        (begun / _ABOUT).write_bytes(msgspec.json.encode(layer))
        if is_synced:
            sync_all_below(begun)
        begun.rename(self._folder / name)
        if is_synced:
            sync(self._folder)
        return layer

    def seal(self, name: str) -> Layer:
        """Find the sum of a complete one, and keep it; not synced.

        Raises:
            TooLarge: It is wider or deeper than a tree may be.
            OSError: The disk is full or broken.
        """
        layer = self.about(name)
        if layer.sha256:
            return layer
        folder = self._folder / name
        found = trees.sum_of(folder / _FILES)
        layer = msgspec.structs.replace(
            layer, sha256=found.sha256, size_bytes=found.size_bytes, entries=found.entries
        )
        newer = folder / f"{_ABOUT}.{token_hex(4)}"  # two images may need it at once
        newer.write_bytes(msgspec.json.encode(layer))
        newer.rename(folder / _ABOUT)
        return layer

    def sync(self) -> None:
        """Have all that are complete outlast a crash of the machine, in one go.

        Raises:
            OSError: The disk is full or broken.
        """
        sync_all_below(self._folder)

    def about(self, name: str) -> Layer:
        """What is known of one that is complete.

        Raises:
            OSError: It is not there, or cannot be read.
        """
        return msgspec.json.decode((self._folder / name / _ABOUT).read_bytes(), type=Layer)

    def holds(self, name: str, sha256: str) -> bool:
        """Whether one is there and is what that sum says; every byte is read."""
        try:
            return trees.sum_of(self._folder_of(name)).sha256 == sha256
        except (NotFound, TooLarge, OSError):
            return False

    def kept(self) -> set[str]:
        """Names of those that hold what sandboxes have written."""
        return {path.name for path in self._folder.glob(f"{KEPT_PREFIX}*") if path.suffix != _UNFINISHED}

    def abandon(self, name: str) -> None:
        """Remove what was begun. Idempotent."""
        self._discard(self._folder / f"{name}{_UNFINISHED}")

    def remove(self, name: str) -> None:
        """Remove one. Idempotent. Requires: nothing is made of it, nor will be."""
        if _NAME.match(name):
            self._discard(self._folder / name)

    def all(self) -> list[Layer]:
        """All that are complete, oldest first."""
        found = [
            msgspec.json.decode(path.read_bytes(), type=Layer)
            for path in self._folder.glob(f"{PREFIX}*/{_ABOUT}")
            if path.parent.suffix != _UNFINISHED
        ]
        return sorted(found, key=lambda layer: layer.created_at)

    def remove_unfinished(self) -> int:
        """Remove what a node that was killed had begun; how many there were."""
        begun = [path for path in self._folder.iterdir() if path.suffix == _UNFINISHED]
        for path in begun:
            self._discard(path)
        return len(begun)
