"""Apply one layer of an image to the root: run inside a sandbox, as its root, over the layers below it.

    python -c THIS ARCHIVE MAX_BYTES MAX_ENTRIES

What a layer hides (`.wh.NAME`, `.wh..wh..opq`) is removed here as a command would: the overlay of the sandbox
writes down that it is gone, in the kernel's own words. The archive is a stranger's, and the sandbox is the
wall. Exit codes as those of `build_extraction`.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

TOO_LARGE, UNFIT = 3, 4
_HIDDEN, _ALL_HIDDEN = ".wh.", ".wh..wh..opq"
_NOT_OF_IMAGES = frozenset(("proc", "sys", "dev", ".cloche"))
"""Mounted in every sandbox: what a layer has below them is not seen, and devices nobody may make."""
_ATTRIBUTES = ("user.", "security.capability")
"""Those that a sandbox's root may set. Where the file system has none, a program asks for less."""
_PAX = "SCHILY.xattr."
_LAST_ID = 65_535


class TooLargeError(Exception):
    """More than an image may hold."""


class UnfitError(Exception):
    """No layer that can be applied."""


def main() -> int:
    """Do what the arguments say; the exit code."""
    archive, max_bytes, max_entries = sys.argv[1:]
    try:
        _Layer(int(max_bytes), int(max_entries)).apply(archive)
    except TooLargeError as error:
        return _told(error, TOO_LARGE)
    except (UnfitError, tarfile.TarError, EOFError, ValueError, LookupError) as error:
        return _told(error, UNFIT)
    except (MemoryError, RecursionError, OSError) as error:
        return _told(error, UNFIT)
    finally:
        Path(archive).unlink(missing_ok=True)
    return 0


def _told(error: Exception, code: int) -> int:
    sys.stderr.write(f"{str(error)[:1000] or type(error).__name__}\n")
    return code


class _Layer:
    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self._left_bytes = max_bytes
        self._left_entries = max_entries
        self._limits = f"{max_bytes >> 20} MiB or {max_entries} entries"
        self._made: set[str] = set()
        """What this layer itself has brought: it hides what lies below it only."""
        self._above: set[str] = set()
        """Folders that hold some of it."""
        self._folders: list[tuple[str, tarfile.TarInfo]] = []

    def apply(self, archive: str) -> None:
        # An empty archive is a layer too: of a step that has changed nothing.
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                self._count(member)
                path = _path_of(member.name)
                if path == "/":
                    _look_as(path, member)
                elif path.split("/")[1] not in _NOT_OF_IMAGES:
                    self._member(tar, member, path)
        # Last, since each file that comes into a folder changes its time, and some may not be written to.
        for path, member in reversed(self._folders):
            if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114 - a text, as tar has it
                _look_as(path, member)

    def _count(self, member: tarfile.TarInfo) -> None:
        self._left_bytes -= max(member.size, 0)
        self._left_entries -= 1
        if self._left_bytes < 0 or self._left_entries < 0:
            raise TooLargeError(f"the layer holds more than {self._limits}")
        if member.size < 0:
            raise UnfitError(f"the layer holds a file of less than nothing: {member.name[:200]}")

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        folder, _, name = path.rpartition("/")
        if name == _ALL_HIDDEN:
            self._hide_below(folder)
        elif name.startswith(_HIDDEN):
            self._hide(folder, name.removeprefix(_HIDDEN))
        elif not (member.ischr() or member.isblk()):
            _make_folders(folder)
            self._make(tar, member, path)
            self._made.add(path)
            while folder and folder not in self._above:
                self._above.add(folder)
                folder = folder.rpartition("/")[0]

    def _make(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            if not _is_folder(path):
                _remove(path)
                os.mkdir(path)  # noqa: PTH102
            self._folders.append((path, member))
            _look_as(path, member)
            return
        # Something that is there is replaced, never written through.
        if member.islnk():
            target = _path_of(member.linkname)
            if target != path:
                _make_link(target, path)
            return
        _remove(path)
        if member.issym():
            os.symlink(member.linkname, path)  # noqa: PTH211 - a text, as tar has it
        elif member.isfifo():
            os.mkfifo(path)
        elif member.isreg():
            _write(tar, member, path)
        else:
            raise UnfitError(f"the layer holds what is no file: {member.name[:200]}")
        _look_as(path, member)

    def _hide(self, folder: str, name: str) -> None:
        if name in {"", ".", ".."}:
            raise UnfitError(f"the layer hides what has no name: {folder[:200]}")
        path = f"{folder}/{name}"
        if name.startswith(_HIDDEN) or path in self._made or path[1:] in _NOT_OF_IMAGES:
            return  # marks of other tools (`.wh..wh.`), and what it has brought itself
        if path in self._above:
            self._hide_below(path)
        elif os.path.isdir(folder or "/"):  # noqa: PTH112
            _remove(path)

    def _hide_below(self, folder: str) -> None:
        if not os.path.isdir(folder or "/"):  # noqa: PTH112
            return
        with os.scandir(folder or "/") as found:
            names = [entry.name for entry in found]
        for name in names:
            path = f"{folder}/{name}"
            if path in self._made or path in self._above:
                if _is_folder(path):  # what it has brought may stand in a folder of the layers below
                    self._hide_below(path)
            elif path[1:] not in _NOT_OF_IMAGES and not name.startswith(".cloche-upload-"):
                _remove(path)


def _path_of(name: str) -> str:
    """Where something of the layer goes.

    Raises:
        UnfitError: Its name leads out.
    """
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise UnfitError(f"the layer holds a name that leads out: {name[:200]}")
    return "/" + "/".join(parts)


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _make_folders(path: str) -> None:
    """Have a folder there; links to folders are followed, as images are made: `/lib` is `usr/lib`."""
    if not path or os.path.isdir(path):  # noqa: PTH112
        return
    _make_folders(path.rpartition("/")[0])
    _remove(path)
    os.mkdir(path)  # noqa: PTH102
    os.chmod(path, 0o755)  # noqa: PTH101, S103 - whatever the mask of files is


def _remove(path: str) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(path)  # noqa: PTH108


def _make_link(target: str, path: str) -> None:
    status = os.lstat(target)
    if stat.S_ISDIR(status.st_mode):
        raise UnfitError(f"the layer links to a folder: {path[:200]}")
    _remove(path)
    os.link(target, path, follow_symlinks=False)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    source = tar.extractfile(member)
    if source is None:
        raise UnfitError(f"the layer holds a file without content: {member.name[:200]}")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with source, os.fdopen(descriptor, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _look_as(path: str, member: tarfile.TarInfo) -> None:
    """Owner, mode, attributes and time, in the order in which they do not undo each other."""
    if max(member.uid, member.gid) > _LAST_ID or min(member.uid, member.gid) < 0:
        raise UnfitError(
            f"the layer holds a file of {member.uid}:{member.gid}, of at most {_LAST_ID}: {member.name[:200]}"
        )
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        os.chmod(path, member.mode & 0o7777)  # noqa: PTH101
        for name, value in member.pax_headers.items():
            if name.startswith(_PAX) and name.removeprefix(_PAX).startswith(_ATTRIBUTES):
                content = value.encode("utf-8", "surrogateescape")
                with suppress(OSError):
                    os.setxattr(path, name.removeprefix(_PAX), content)
    moment_ns = int(member.mtime * 1_000_000_000)
    with suppress(OSError, OverflowError):
        os.utime(path, ns=(moment_ns, moment_ns), follow_symlinks=False)


if __name__ == "__main__":
    sys.exit(main())
