"""The folder that a template is built from: what steps copy of it, as archives named by their content.

An archive is laid out as its files are to lie at their target, so that one step brings all sources of an
instruction. The same files give the same archive, whoever packs them and when.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cloche_wire.ignore import Ignore, pattern_of

_WILD = re.compile(r"[*?\[]")


class Packed(NamedTuple):
    """An archive on disk."""

    path: Path
    files_hash: str
    source: str
    """What of it a step asks for: `.` for all that lies in it, else the one file."""


class _Entry(NamedTuple):
    name: str
    """In the archive."""
    path: Path


class Context:
    """A folder, without what its `.dockerignore` leaves out."""

    def __init__(self, folder: Path, scratch: Path, ignored: Iterable[str] = ()) -> None:
        """Read the folder's `.dockerignore`, to which `ignored` adds lines; archives go to `scratch`.

        That is a folder of the caller's.
        """
        self._folder = folder
        self._scratch = scratch
        rules = folder / ".dockerignore"
        lines = rules.read_text().splitlines() if rules.is_file() else ()
        self._ignore = Ignore((*lines, *ignored))

    def pack(self, sources: list[str]) -> Packed:
        """Pack files and folders of the context; a folder without its own name, a pattern for all it fits.

        Raises:
            FileNotFoundError: A source is not there, or all of it is left out.
            ValueError: A source lies outside the context.
        """
        found = [path for source in sources for path in self._found(source)]
        entries: dict[str, _Entry] = {}
        for path in found:
            for entry in self._entries(path):
                entries[entry.name] = entry
        single = len(found) == 1 and not _is_folder(found[0])
        return self._write(sorted(entries.values()), found[0].name if single else ".")

    def pack_text(self, name: str, content: str) -> Packed:
        """Pack one file of this content."""
        path = self._scratch / f"text-{hashlib.sha256(content.encode()).hexdigest()}"
        path.write_text(content)
        path.chmod(0o644)
        return self._write([_Entry(name, path)], name)

    def unpack_of(self, source: str) -> Packed | None:
        """Return an archive of the context as one whose content is to be copied; None where it is none."""
        found = self._found(source)
        if len(found) != 1 or not found[0].is_file():
            return None
        opened = _decompressed(found[0])
        if opened is None:
            return None
        with opened:
            return self._name(opened, ".")

    def _found(self, source: str) -> list[Path]:
        clean = os.path.normpath(source.lstrip("/") or ".")
        if clean.startswith("../") or clean == "..":
            raise ValueError(f"outside the folder of the build: {source}")
        if not _WILD.search(clean):
            path = self._folder / clean
            if not os.path.lexists(path) or (clean != "." and self._is_left_out(clean, path)):
                raise FileNotFoundError(source)
            return [path]
        fits = re.compile(f"{pattern_of(clean)}\\Z", re.DOTALL)
        names = (name for name in self._walk(".") if fits.match(name))
        if not (found := [self._folder / name for name in sorted(names)]):
            raise FileNotFoundError(source)
        return found

    def _is_left_out(self, name: str, path: Path) -> bool:
        return self._ignore.excludes(name) and not (_is_folder(path) and self._ignore.has_exceptions)

    def _entries(self, path: Path) -> Iterator[_Entry]:
        if not _is_folder(path):
            yield _Entry(path.name, path)
            return
        top = path.relative_to(self._folder).as_posix()
        for name in self._walk(top):
            yield _Entry(os.path.relpath(name, top), self._folder / name)

    def _walk(self, top: str) -> Iterator[str]:
        """Names below a folder of the context, relative to the context, without what is left out."""
        for entry in sorted(os.scandir(self._folder / top), key=lambda entry: entry.name):
            name = entry.name if top == "." else f"{top}/{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=False)
            is_out = self._ignore.excludes(name)
            if not is_out:
                yield name
            if is_folder and (not is_out or self._ignore.has_exceptions):
                yield from self._walk(name)

    def _write(self, entries: list[_Entry], source: str) -> Packed:
        # Named by what goes in: the bytes of gzip depend on the version of zlib.
        digest = hashlib.sha256(source.encode())
        path = self._scratch / f"archive-{len(list(self._scratch.iterdir()))}"
        with (
            path.open("wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for entry in entries:
                _add(archive, entry, digest.update)
        return Packed(path, digest.hexdigest(), source)

    def _name(self, opened: io.BufferedIOBase, source: str) -> Packed:
        digest = hashlib.sha256(b"unpacked")
        path = self._scratch / f"archive-{len(list(self._scratch.iterdir()))}"
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
            while piece := opened.read(1 << 20):
                digest.update(piece)
                packed.write(piece)
        return Packed(path, digest.hexdigest(), source)


def pack_steps(steps: list[dict[str, Any]], context: Context) -> tuple[list[dict[str, Any]], list[Packed]]:
    """Return a builder's steps as they are sent, and the archives that they copy from, each once.

    Its `COPY` names a source of the context; what is sent names what lies in an archive, and the archive.

    Raises:
        FileNotFoundError: A source is not there, or all of it is left out.
        ValueError: A source lies outside the context.
    """
    sent: list[dict[str, Any]] = []
    archives: dict[str, Packed] = {}
    for step in steps:
        if step["type"] != "COPY":
            sent.append(step)
            continue
        source, *more = step["args"]
        packed = context.pack([source])
        archives.setdefault(packed.files_hash, packed)
        sent.append({**step, "args": [packed.source, *more], "filesHash": packed.files_hash})
    return sent, list(archives.values())


def _add(archive: tarfile.TarFile, entry: _Entry, update: Callable[[bytes], None]) -> None:
    """Add one entry without what differs between machines: owners, times, devices."""
    about = entry.path.lstat()
    member = tarfile.TarInfo(entry.name)
    member.mode = stat.S_IMODE(about.st_mode)
    said = f"{entry.name}\0{about.st_mode}\0"
    if stat.S_ISLNK(about.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, str(entry.path.readlink())
        update(f"{said}{member.linkname}\0".encode())
        archive.addfile(member)
    elif stat.S_ISDIR(about.st_mode):
        member.type = tarfile.DIRTYPE
        update(said.encode())
        archive.addfile(member)
    elif stat.S_ISREG(about.st_mode):
        with entry.path.open("rb") as file:
            member.size = os.fstat(file.fileno()).st_size
            content = hashlib.file_digest(file, "sha256").hexdigest()
            update(f"{said}{content}\0".encode())
            file.seek(0)
            archive.addfile(member, file)
    # Sockets, pipes and devices mean nothing elsewhere.


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _decompressed(path: Path) -> io.BufferedIOBase | None:
    """Open a tar file, compressed or not, as plain one; None where it is none."""
    try:
        with tarfile.open(path):
            pass
    except (tarfile.TarError, EOFError, OSError):
        return None
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if head.startswith(b"BZh"):
        return bz2.open(path)
    return lzma.open(path) if head.startswith((b"\xfd7zXZ", b"]\0\0")) else path.open("rb")
