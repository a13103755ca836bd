"""Folders that stand still: walked, copied and told by a sum, whatever a tenant has put into them.

Nobody changes them meanwhile, so every error counts. Whiteouts, attributes, holes, hard links and sockets
come along, so that the copy of a layer is a layer; times do in a copy, and are no part of a sum.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from cloche_server.node.layer_size import MAX_DEPTH, OPEN_FOLDER
from cloche_wire.errors import TooLarge

MOST_ENTRIES = 500_000
"""In one tree: their names are in memory for a while, and each takes 30 µs."""
_FICLONE = 0x4004_9409
_PIECE_BYTES = 64 << 10
_ZEROS = bytes(_PIECE_BYTES)
_LONGEST_PATH = 4000
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MADE = {stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR}


class Entry(NamedTuple):
    """One name of a tree."""

    folder: int
    """Descriptor of the folder that it is in, good until the next one is asked for."""
    name: str
    status: os.stat_result
    depth: int
    """1 in the root."""

    @property
    def path(self) -> str:
        """A way to it that follows no link of the tree, and is of any depth."""
        return below(self.folder, self.name)


class TreeSum(NamedTuple):
    """What a tree is, by all but its times, and what it takes."""

    sha256: str
    size_bytes: int
    entries: int


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def below(folder: int, name: str) -> str:
    """A path for calls that take no descriptor of a folder."""
    return f"/proc/self/fd/{folder}/{name}"


def names(folder: int, most: int) -> list[str]:
    """The names in an open folder, in order.

    Raises:
        TooLarge: There are more.
    """
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if len(found) >= most:
                raise TooLarge(
                    f"more than {MOST_ENTRIES} files to be kept", hint="remove what is not needed in it"
                )
            found.append(entry.name)
    return sorted(found)


@contextmanager
def opened(path: Path | str, folder: int | None = None) -> Generator[int]:
    """A folder, not by a link."""
    descriptor = os.open(path, OPEN_FOLDER, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def require_depth(depth: int) -> None:
    """Refuse what is too deep.

    Raises:
        TooLarge: It is.
    """
    if depth > MAX_DEPTH:
        raise TooLarge(f"folders deeper than {MAX_DEPTH} cannot be kept")


def walk(root: int) -> Generator[Entry]:
    """Everything below an open folder: folders before what they hold, names in order.

    Raises:
        TooLarge: It is wider or deeper than a tree may be.
        OSError: It cannot be read.
    """
    left = MOST_ENTRIES
    stack: list[tuple[int, list[str]]] = []
    try:
        found = names(root, left)
        left -= len(found)
        stack.append((root, found[::-1]))
        while stack:
            folder, waiting = stack[-1]
            if not waiting:
                _close(stack.pop()[0], root)
                continue
            name = waiting.pop()
            # SAFETY: each step goes from an open folder to one name in it, and follows no link.
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            yield Entry(folder, name, status, len(stack))
            if stat.S_ISDIR(status.st_mode):
                require_depth(len(stack) + 1)
                child = os.open(name, OPEN_FOLDER, dir_fd=folder)
                stack.append((child, []))
                found = names(child, left)
                left -= len(found)
                stack[-1] = (child, found[::-1])
    finally:
        for folder, _ in stack:
            _close(folder, root)


def _close(folder: int, root: int) -> None:
    if folder != root:
        os.close(folder)


# --- Sums ---------------------------------------------------------------------------------------------------


def sum_of(path: Path) -> TreeSum:
    """Read a whole tree.

    Raises:
        TooLarge: See `walk`.
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    size_bytes = entries = 0
    seen: set[int] = set()
    with opened(path) as root:
        _describe(digest, "", os.fstat(root), f"/proc/self/fd/{root}", 0)
        for entry in walk(root):
            status = entry.status
            _describe(digest, entry.name, status, entry.path, entry.depth)
            entries += 1
            if status.st_ino not in seen:
                size_bytes += status.st_blocks * 512
            if status.st_nlink > 1:
                seen.add(status.st_ino)
            if stat.S_ISLNK(status.st_mode):
                _add(digest, os.fsencode(os.readlink(entry.name, dir_fd=entry.folder)))
            elif stat.S_ISREG(status.st_mode):
                with _opened_file(entry) as file:
                    _add_content(digest, file, status.st_size)
    return TreeSum(digest.hexdigest(), size_bytes, entries)


def _describe(digest: _Digest, name: str, status: os.stat_result, path: str, depth: int) -> None:
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    known = (depth, status.st_mode, status.st_uid, status.st_gid, status.st_rdev, size)
    _add(digest, os.fsencode(name))
    _add(digest, " ".join(map(str, known)).encode())
    for attribute in sorted(os.listxattr(path, follow_symlinks=depth == 0)):
        _add(digest, os.fsencode(attribute))
        _add(digest, os.getxattr(path, attribute, follow_symlinks=depth == 0))
    _add(digest, b"")


def _add(digest: _Digest, value: bytes) -> None:
    digest.update(len(value).to_bytes(4))
    digest.update(value)


def _add_content(digest: _Digest, file: int, size: int) -> None:
    """What is a hole does not count, and neither do zeros: the file system makes either of the other."""
    read = 0
    for start, end in _extents(file, size):
        # Pieces begin at multiples of their size: what else is in the last one was read with it.
        for offset in range(max(read, start - start % _PIECE_BYTES), end, _PIECE_BYTES):
            piece = os.pread(file, _PIECE_BYTES, offset)
            read = offset + _PIECE_BYTES
            if piece != (_ZEROS if len(piece) == _PIECE_BYTES else bytes(len(piece))):
                digest.update(offset.to_bytes(8) + len(piece).to_bytes(4))
                digest.update(piece)
    digest.update(size.to_bytes(8))


def _extents(file: int, size: int) -> Generator[tuple[int, int]]:
    """What of a file may be other than zeros; a petabyte of holes takes no time."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(file, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = min(os.lseek(file, start, os.SEEK_HOLE), size)
        yield start, offset


@contextmanager
def _opened_file(entry: Entry) -> Generator[int]:
    descriptor = os.open(entry.name, _OPEN_FILE, dir_fd=entry.folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# --- Copies -------------------------------------------------------------------------------------------------


def copy(source: Path, target: Path, *, by_link: bool) -> None:
    """Make `target` the same tree as `source`, not synced; on an error there may be a part of it.

    Args:
        source: Stands still; for ever where it is copied `by_link`.
        target: There is nothing there.
        by_link: Both have the same files, under other names: no data is copied.

    Raises:
        TooLarge: See `walk`.
        OSError: It cannot be read, or the disk is full.
    """
    target.mkdir(mode=0o700)
    copier = _Copier(by_link=by_link)
    folders: list[tuple[int, os.stat_result]] = []
    with opened(source) as root, opened(target) as top:
        try:
            folders.append((os.dup(top), os.fstat(root)))
            take_over(f"/proc/self/fd/{root}", f"/proc/self/fd/{top}", os.fstat(root), follow=True)
            way: list[str] = []
            for entry in walk(root):
                while len(folders) > entry.depth:
                    _leave(*folders.pop())
                del way[entry.depth - 1 :]
                way.append(entry.name)
                folder = folders[-1][0]
                if stat.S_ISDIR(entry.status.st_mode):
                    os.mkdir(entry.name, 0o700, dir_fd=folder)
                    take_over(entry.path, below(folder, entry.name), entry.status)
                    folders.append((os.open(entry.name, OPEN_FOLDER, dir_fd=folder), entry.status))
                else:
                    copier.copy(entry, folder, top, "/".join(way))
            while folders:
                _leave(*folders.pop())
        finally:
            for folder, _ in folders:
                os.close(folder)


def _leave(folder: int, status: os.stat_result) -> None:
    try:
        os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(folder)


def take_over(source: str, target: str, status: os.stat_result, *, follow: bool = False) -> None:
    """Give `target` the owner, the attributes and the mode of `source`, in the order that keeps them all."""
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=follow)
    if not stat.S_ISLNK(status.st_mode):
        # SAFETY: made by us in a folder of ours, and no link.
        Path(target).chmod(stat.S_IMODE(status.st_mode))
    for attribute in os.listxattr(source, follow_symlinks=follow):
        value = os.getxattr(source, attribute, follow_symlinks=follow)
        os.setxattr(target, attribute, value, follow_symlinks=follow)


class _Copier:
    """Copies what is no folder."""

    def __init__(self, *, by_link: bool) -> None:
        self._by_link = by_link
        self._clones = True
        """Whether this file system lets two files have the same blocks, as far as is known."""
        self._first: dict[int, str] = {}
        """Where those are that have more names than one."""

    def copy(self, entry: Entry, folder: int, top: int, way: str) -> None:
        """Copy one into a folder; `way` leads to it from `top`."""
        if self._by_link:
            link(entry, folder)
            return
        status = entry.status
        has_names = status.st_nlink > 1 and len(os.fsencode(way)) < _LONGEST_PATH
        if has_names and (first := self._first.get(status.st_ino)) is not None:
            os.link(first, entry.name, src_dir_fd=top, dst_dir_fd=folder, follow_symlinks=False)
            return
        self._make(entry, folder)
        take_over(entry.path, below(folder, entry.name), status)
        times = status.st_atime_ns, status.st_mtime_ns
        os.utime(entry.name, ns=times, dir_fd=folder, follow_symlinks=False)
        if has_names:
            self._first[status.st_ino] = way

    def _make(self, entry: Entry, folder: int) -> None:
        kind = stat.S_IFMT(entry.status.st_mode)
        if kind == stat.S_IFREG:
            self._copy_content(entry, folder)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(entry.name, dir_fd=entry.folder), entry.name, dir_fd=folder)
        elif kind in _MADE and entry.status.st_rdev == 0:
            # A device 0:0 is what hides a file of a layer below; no sandbox can have made another.
            os.mknod(entry.name, kind | 0o600, 0, dir_fd=folder)
        else:
            raise OSError(errno.EINVAL, "a device that no sandbox makes", entry.name)

    def _copy_content(self, entry: Entry, folder: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(entry.name, flags, 0o600, dir_fd=folder)
        try:
            size = entry.status.st_size
            if not size:
                return
            with _opened_file(entry) as file:
                if self._clones:
                    try:
                        fcntl.ioctl(made, _FICLONE, file)
                    except OSError as error:
                        if error.errno == errno.ENOSPC:
                            raise
                        self._clones = False
                    else:
                        return
                for start, end in _extents(file, size):
                    _copy_range(file, made, start, end)
            os.ftruncate(made, size)
        finally:
            os.close(made)


def link(entry: Entry, folder: int) -> None:
    """Give a file that nobody changes any more a second name; where it cannot have one, make a copy."""
    try:
        os.link(entry.name, entry.name, src_dir_fd=entry.folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EXDEV):
            raise
        _Copier(by_link=False).copy(entry, folder, folder, entry.name)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        # Not `copy_file_range`, which does it within one file system only; where it is better, FICLONE was.
        copied = os.sendfile(target, source, start, end - start)
        if copied == 0:
            raise OSError(errno.EIO, "a file has become shorter")
        start += copied
