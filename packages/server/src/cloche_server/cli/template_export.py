"""Writes a template to one file that anybody can read: a tar of layers, each as images have them, and JSON.

layers/000.tar ...      the lowest first; what hides something below is `.wh.NAME` and `.wh..wh..opq`
manifest.json           `Exported`; last, since it says what the others are
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import msgspec

from cloche_server.node import trees
from cloche_server.templates.manifest import Manifest
from cloche_wire.errors import NotEnoughSpace

FORMAT = "cloche-template 1"
MANIFEST = "manifest.json"
_HIDDEN, _ALL_HIDDEN = ".wh.", ".wh..wh..opq"
_OPAQUE, _IS_OPAQUE = "trusted.overlay.opaque", b"y"
_KEPT_ATTRIBUTES = ("user.", "security.capability")
_PAX = "SCHILY.xattr."


class ExportedLayer(msgspec.Struct, frozen=True):
    """One layer of the file."""

    file: str
    sha256: str
    size_bytes: int


class Exported(msgspec.Struct, frozen=True):
    """All that a template is but its files."""

    format: str
    name: str
    layers: list[ExportedLayer]
    """The lowest first."""
    cpu_count: int
    memory_mib: int
    user: str
    workdir: str
    env: dict[str, str]
    start_cmd: str = ""
    ready_cmd: str = ""
    preload: tuple[str, ...] = ()
    isolation: str = ""


class Written(NamedTuple):
    """What came out."""

    layers: int
    size_bytes: int


def export(template: Manifest, folders: Sequence[Path], path: Path) -> Written:
    """Write a template of these folders, uppermost first; the file has its name once all of it is there.

    Requires: the right to read files of any owner; nobody changes the folders.

    Raises:
        NotEnoughSpace: The disk is full, or the file cannot be made.
        TooLarge: A layer is wider or deeper than a tree may be.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            layers = [_add_layer(file, number, folder) for number, folder in enumerate(folders[::-1])]
            about = msgspec.json.format(msgspec.json.encode(_about(template, layers)))
            _add_head(file, MANIFEST, len(about))
            file.write(about)
            _pad(file, len(about))
            file.write(bytes(2 * tarfile.BLOCKSIZE))
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise NotEnoughSpace(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return Written(len(layers), path.stat().st_size)


def _about(template: Manifest, layers: list[ExportedLayer]) -> Exported:
    return Exported(
        FORMAT,
        template.name,
        layers,
        template.cpu_count,
        template.memory_mib,
        template.default_user,
        template.default_workdir,
        template.env,
        template.start_cmd,
        template.ready_cmd,
        template.warm,
        template.isolation,
    )


def _add_layer(file: BinaryIO, number: int, folder: Path) -> ExportedLayer:
    """Write one into the file at its end: its head again, once its size is known."""
    name = f"layers/{number:03}.tar"
    head_at = file.tell()
    _add_head(file, name, 0)
    counted = _Counted(file)
    with tarfile.open(fileobj=cast("BinaryIO", counted), mode="w|", format=tarfile.PAX_FORMAT) as archive:
        _LayerWriter(archive).write(folder)
    end_at = file.tell()
    file.seek(head_at)
    _add_head(file, name, counted.size)
    file.seek(end_at)
    _pad(file, counted.size)
    return ExportedLayer(name, counted.digest.hexdigest(), counted.size)


def _add_head(file: BinaryIO, name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    # One block whatever the size: GNU's form has numbers of any length.
    file.write(member.tobuf(tarfile.GNU_FORMAT))


def _pad(file: BinaryIO, size: int) -> None:
    file.write(bytes(-size % tarfile.BLOCKSIZE))


class _Counted:
    """A file that knows what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.digest.update(data)
        return self._file.write(data)


class _LayerWriter:
    """Writes a layer's folder, as the overlay has it, as an image's layer."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._links: dict[tuple[int, int], str] = {}
        self._names: list[str] = []

    def write(self, folder: Path) -> None:
        with trees.opened(folder) as root:
            for entry in trees.walk(root):
                del self._names[entry.depth - 1 :]
                self._names.append(entry.name)
                self._add(entry, "/".join(self._names))

    def _add(self, entry: trees.Entry, name: str) -> None:
        status = entry.status
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            hidden = "/".join([*self._names[:-1], f"{_HIDDEN}{entry.name}"])
            self._archive.addfile(tarfile.TarInfo(hidden))
            return
        member = tarfile.TarInfo(name)
        member.mode = stat.S_IMODE(status.st_mode)
        member.uid, member.gid, member.mtime = status.st_uid, status.st_gid, int(status.st_mtime)
        member.pax_headers = _attributes(entry)
        if stat.S_ISDIR(status.st_mode):
            member.type = tarfile.DIRTYPE
            self._archive.addfile(member)
            if _attribute(entry, _OPAQUE) == _IS_OPAQUE:
                self._archive.addfile(tarfile.TarInfo(f"{name}/{_ALL_HIDDEN}"))
        elif stat.S_ISLNK(status.st_mode):
            member.type = tarfile.SYMTYPE
            member.linkname = os.readlink(entry.name, dir_fd=entry.folder)
            self._archive.addfile(member)
        elif stat.S_ISFIFO(status.st_mode):
            member.type = tarfile.FIFOTYPE
            self._archive.addfile(member)
        elif stat.S_ISREG(status.st_mode):
            self._add_file(entry, member)
        # Sockets and devices mean nothing elsewhere.

    def _add_file(self, entry: trees.Entry, member: tarfile.TarInfo) -> None:
        inode = (entry.status.st_dev, entry.status.st_ino)
        if entry.status.st_nlink > 1 and inode in self._links:
            member.type, member.linkname = tarfile.LNKTYPE, self._links[inode]
            self._archive.addfile(member)
            return
        self._links[inode] = member.name
        # SAFETY: a name in an open folder, of a tree that stands still; a link there is not followed.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(entry.name, flags, dir_fd=entry.folder), "rb") as file:
            member.size = entry.status.st_size
            self._archive.addfile(member, file)


def _attributes(entry: trees.Entry) -> dict[str, str]:
    if stat.S_ISLNK(entry.status.st_mode):
        return {}
    names: list[str] = []
    with suppress(OSError):
        names = os.listxattr(entry.path)
    found = {name: _attribute(entry, name) for name in names if name.startswith(_KEPT_ATTRIBUTES)}
    return {f"{_PAX}{name}": value.decode("utf-8", "surrogateescape") for name, value in found.items()}


def _attribute(entry: trees.Entry, name: str) -> bytes:
    with suppress(OSError):
        return os.getxattr(entry.path, name)
    return b""
