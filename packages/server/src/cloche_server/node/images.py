"""Sandboxes on disk: folders of files that a driver has saved, and a manifest that says what they must be.

    STATE/images/<name>/            complete, and synced: it got its name last
        checkpoint.img, ...         as the driver wrote them
        manifest                    a line with the SHA-256 of the rest, then JSON (`Manifest`)
    STATE/images/<name>.new/        being written, or of use to this process only; nobody's after a crash

Where files are kept without memory the folder may hold the manifest alone, which names layers (`kept_files`).

Reading one checks every byte, so that a damaged one is refused by name before anything is started of it. What
this process has kept for a moment is not checked: it never leaves the machine's memory unless that is short.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

from cloche_server.node import threads
from cloche_server.node.durability import sync
from cloche_server.node.layers import Layers
from cloche_wire.errors import SnapshotNotFound, SnapshotUnusable

_PIECE_BYTES = 8 << 20
"""Pieces are read by as many threads as there are cores: one core does 1.7 GB/s."""
_READ_BYTES = 1 << 20
FILES = "files"
"""The format of an image of layers, which any driver can read."""
_MANIFEST = "manifest"
_UNFINISHED = ".new"


class FileSum(msgspec.Struct, frozen=True):
    """What a file must be."""

    size: int
    sha256: str
    piece_bytes: int = 0
    """The hash is that of the hashes of pieces of so many bytes, one after the other; 0: of the file itself,
    as earlier versions wrote it."""


class KeptLayer(msgspec.Struct, frozen=True):
    """A layer that an image names."""

    name: str
    sha256: str
    """What it must be (`trees.sum_of`); empty in an image for now."""
    size_bytes: int


class Manifest(msgspec.Struct, frozen=True):
    """What an image is of."""

    format: str
    """`Capabilities.image_format` of the driver that wrote it, or `FILES`."""
    build_id: str
    """The template's build that it stands on; empty for one of an agent alone (`agent_images`)."""
    runtime_tree: str
    """Name of the tree that its agent runs on."""
    access_token: str = ""
    """The one that its agent goes by; empty for one that is nobody's."""
    has_memory: bool = True
    """Whether its processes go on in what is made of it; otherwise they end, and its files are there."""
    env: dict[str, str] = {}
    """Variables that its creator gave it, beside those of the template."""
    shows_boot_id: bool = False
    """Whether what is made of it has to be given an id of its boot to show; earlier versions gave none."""
    files: dict[str, FileSum] = {}
    layers: tuple[KeptLayer, ...] = ()
    """Over those of the template, uppermost first."""
    volume_paths: tuple[str, ...] = ()
    """Where the sandbox had volumes: what goes on from its processes has some at these, and no others."""
    volume_entries: tuple[str, ...] = ()
    """Files and folders in them that it may need, as `Driver.save` tells them."""

    @property
    def size_bytes(self) -> int:
        """What it takes on disk."""
        return sum(one.size for one in self.files.values()) + sum(one.size_bytes for one in self.layers)


class Images:
    """All that this node has."""

    def __init__(self, folder: Path, discard: Callable[[Path], None], layers: Layers) -> None:
        """Take their folder, what removes a folder in time, and the layers that they may name."""
        self._folder = folder
        self._discard = discard
        self._layers = layers
        self._checked: dict[str, Manifest] = {}
        self._being_checked: dict[str, asyncio.Future[Manifest]] = {}
        self._manifests: dict[str, Manifest] = {}
        """As they were read; nobody changes one."""
        self._kept: dict[str, Manifest] = {}
        """Those that end with this process."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self, name: str) -> Path:
        """Return a new empty folder to save into; `commit` gives it its name, `abandon` takes it away.

        Raises:
            OSError: The disk is full.
        """
        self.abandon(name)
        path = self._folder / f"{name}{_UNFINISHED}"
        path.mkdir(mode=0o700)
        return path

    def abandon(self, name: str) -> None:
        """Remove what was begun. Idempotent."""
        self._discard(self._folder / f"{name}{_UNFINISHED}")

    async def commit(self, name: str, manifest: Manifest) -> Manifest:
        """Have what was begun survive a crash of the machine from here on, under its name; its layers too.

        Raises:
            OSError: The disk is full or broken; it is still only begun.
        """
        return await threads.in_thread(self._commit, name, manifest)

    def keep(self, name: str, manifest: Manifest) -> Manifest:
        """Have what was begun be there until it is removed or this process ends, and not survive that.

        Neither synced nor hashed, which takes 100 ms and more: for copies that are made at once.

        Raises:
            OSError: The disk is broken; it is still only begun.
        """
        begun = self._folder / f"{name}{_UNFINISHED}"
        sizes = {path.name: FileSum(path.stat().st_size, "") for path in begun.iterdir()}
        manifest = self._kept[name] = msgspec.structs.replace(manifest, files=sizes)
        return manifest

    async def open(
        self, name: str, image_format: str, *, checked_before: bool = False
    ) -> tuple[Path, Manifest]:
        """Return the folder of one and its manifest, every byte checked: now, or once by this process.

        One that is only kept is as this process has written it, and not checked.

        Raises:
            SnapshotNotFound: There is none of that name.
            SnapshotUnusable: It is damaged, or of another format; the message names it.
        """
        if (kept := self._kept.get(name)) is not None:
            return self._folder / f"{name}{_UNFINISHED}", kept
        manifest = self._checked.get(name) if checked_before else None
        if manifest is None:
            manifest = self._checked[name] = await self._check_once(name, image_format)
        return self._folder / name, manifest

    def remove(self, name: str) -> None:
        """Remove one. Idempotent."""
        self._checked.pop(name, None)
        self._manifests.pop(name, None)
        if self._kept.pop(name, None) is not None:
            self.abandon(name)
        self._discard(self._folder / name)

    def __contains__(self, name: str) -> bool:
        return name in self._kept or (self._folder / name / _MANIFEST).exists()

    def names(self) -> set[str]:
        """All that have their name, complete or not."""
        return {path.name for path in self._folder.iterdir() if path.suffix != _UNFINISHED}

    def manifests(self) -> list[Manifest]:
        """Those of all images, also for now.

        Raises:
            SnapshotUnusable: One cannot be read: nobody knows what it stands on.
        """
        names = self.names()
        for name in names - self._manifests.keys():
            with suppress(SnapshotNotFound):  # it is on its way out
                self._manifests[name] = self._read_manifest(name)
        return [*(self._manifests[name] for name in names & self._manifests.keys()), *self._kept.values()]

    def remove_unfinished(self) -> int:
        """Remove what a node that was killed had begun; how many there were."""
        begun = [path for path in self._folder.iterdir() if path.suffix == _UNFINISHED]
        for path in begun:
            self._discard(path)
        return len(begun)

    async def _check_once(self, name: str, image_format: str) -> Manifest:
        """As `_check`, once for all who ask at the same time: five copies of one would read it five times."""
        while (others := self._being_checked.get(name)) is not None:
            await asyncio.wait({others})
            if not others.cancelled():
                return others.result()
        mine = self._being_checked[name] = asyncio.get_running_loop().create_future()
        try:
            manifest = await threads.in_thread(self._check, name, image_format)
            mine.set_result(manifest)
        except (SnapshotNotFound, SnapshotUnusable) as error:
            mine.set_exception(error)
            mine.exception()  # nobody else may have asked
            raise
        else:
            return manifest
        finally:
            mine.cancel()
            del self._being_checked[name]

    def _commit(self, name: str, manifest: Manifest) -> Manifest:
        begun = self._folder / f"{name}{_UNFINISHED}"
        saved = sorted(begun.iterdir())
        with ThreadPoolExecutor(1) as beside:  # the disk writes while we read the same pages from memory
            synced = beside.submit(lambda: [sync(path) for path in saved])
            sums = {path.name: _sum(path, _PIECE_BYTES) for path in saved}
            synced.result()
        manifest = msgspec.structs.replace(manifest, files=sums)
        content = msgspec.json.encode(manifest)
        path = begun / _MANIFEST
        path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        if manifest.layers:
            self._layers.sync()  # this file too, on the same disk: little is left of the next two
        sync(path)
        sync(begun)
        begun.rename(self._folder / name)
        sync(self._folder)
        return manifest

    def _check(self, name: str, image_format: str) -> Manifest:
        folder = self._folder / name
        manifest = self._read_manifest(name)
        if manifest.format not in (image_format, FILES):
            raise SnapshotUnusable(
                f"image {name} was made by {manifest.format}, and this is {image_format}",
                hint="use that version again, or resume without memory where files are enough",
            )
        for file, wanted in manifest.files.items():
            try:
                found = _sum(folder / file, wanted.piece_bytes)
            except OSError as error:
                raise SnapshotUnusable(f"image {name} is damaged: {file}: {error.strerror}") from error
            if found != wanted:
                raise SnapshotUnusable(f"image {name} is damaged: {file} is not what was written")
        for layer in manifest.layers:
            if not self._layers.holds(layer.name, layer.sha256):
                raise SnapshotUnusable(f"image {name} is damaged: {layer.name} is not what was written")
        return manifest

    def _read_manifest(self, name: str) -> Manifest:
        try:
            digest, _, content = (self._folder / name / _MANIFEST).read_bytes().partition(b"\n")
        except FileNotFoundError:
            raise SnapshotNotFound(f"no such image: {name}") from None
        except OSError as error:
            raise SnapshotUnusable(f"image {name} is damaged: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest().encode() != digest:
            raise SnapshotUnusable(f"image {name} is damaged: its manifest is not what was written")
        return msgspec.json.decode(content, type=Manifest)


def _sum(path: Path, piece_bytes: int) -> FileSum:
    """What a file is, by pieces of so many bytes; 0: as a whole."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if not piece_bytes:
            return FileSum(size, _piece(descriptor, 0, size).hex())
        starts = range(0, size, piece_bytes)
        ends = [min(start + piece_bytes, size) for start in starts]
        with ThreadPoolExecutor(os.cpu_count()) as readers:
            pieces = readers.map(_piece, [descriptor] * len(starts), starts, ends)
            return FileSum(size, hashlib.sha256(b"".join(pieces)).hexdigest(), piece_bytes)
    finally:
        os.close(descriptor)


def _piece(descriptor: int, offset: int, end: int) -> bytes:
    """SHA-256 of a part of a file, or of what there is of it."""
    digest = hashlib.sha256()
    while offset < end and (read := os.pread(descriptor, min(_READ_BYTES, end - offset), offset)):
        digest.update(read)
        offset += len(read)
    return digest.digest()
