"""What a volume holds, as it is told."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

import msgspec

from cloche_server.volumes import paths

MAX_DEPTH = 32
"""Of one listing: each level holds a folder open."""
BATCH = 500
"""Entries told at once, and sorted among themselves."""

Kind = Literal["file", "directory", "symlink", "unknown"]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry, as clients read it. Ids are those that sandboxes see."""

    name: str
    type: Kind
    path: str
    size: int
    mode: int
    """Permission bits, setuid, setgid and sticky included; no file type."""
    uid: int
    gid: int
    atime: datetime
    mtime: datetime
    ctime: datetime
    target: str | None = None
    """Where a symbolic link points, as it is written in it."""


def entry_at(root: int, path: str) -> Entry:
    """Return what a normalized path names; a link stands for itself.

    Raises:
        OSError: As `open_inside`.
    """
    opened = paths.open_inside(root, path, os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(opened)
        target = os.readlink("", dir_fd=opened) if stat.S_ISLNK(status.st_mode) else None
    finally:
        os.close(opened)
    return _entry(path, status, target)


def list_folder(root: int, path: str, depth: int) -> Iterator[list[Entry]]:
    """Yield what lies below a folder, in batches; every folder right before what is in it.

    Memory stays the same however much there is. What vanishes meanwhile is left out.

    Args:
        root: Descriptor of the volume's root.
        path: Normalized; a link to a folder is followed.
        depth: Levels, from 1 to `MAX_DEPTH`.

    Raises:
        OSError: As `open_inside`, before the first batch.
    """
    folder = paths.open_inside(root, path, os.O_RDONLY | os.O_DIRECTORY)
    batch: list[Entry] = []
    for entry in _walk(folder, path, depth):
        batch.append(entry)
        if len(batch) >= BATCH:
            yield batch
            batch = []
    yield batch


def _walk(folder: int, path: str, depth: int) -> Iterator[Entry]:
    """Yield the entries of an open folder, which is closed at the end."""
    try:
        with os.scandir(folder) as scan:
            while names := sorted(entry.name for entry in islice(scan, BATCH)):
                for name in names:
                    yield from _told(folder, path, name, depth)
    finally:
        os.close(folder)


def _told(folder: int, path: str, name: str, depth: int) -> Iterator[Entry]:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else None
    except OSError:
        return  # it went, or became something else, at this moment
    below = posixpath.join(path, name)
    yield _entry(below, status, target)
    if depth > 1 and stat.S_ISDIR(status.st_mode):
        with contextlib.suppress(OSError):
            yield from _walk(paths.open_child(folder, name), below, depth - 1)


def _entry(path: str, status: os.stat_result, target: str | None) -> Entry:
    shown = _text(path)
    return Entry(
        name=posixpath.basename(shown) or "/",
        type=_kind(status.st_mode),
        path=shown,
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        atime=_time(status.st_atime_ns),
        mtime=_time(status.st_mtime_ns),
        ctime=_time(status.st_ctime_ns),
        target=None if target is None else _text(target),
    )


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "unknown"


def _text(name: str) -> str:
    """Show a name that is not UTF-8, which JSON cannot hold, with replacement characters."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _time(nanoseconds: int) -> datetime:
    # A tenant sets any time; people's calendars end with the year 9999.
    seconds = min(max(nanoseconds // 1_000_000_000, -62_135_596_800), 253_402_300_799)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000 % 1_000_000)
