"""Several layers as one folder: over the same layers below it, it shows what they show.

What hides files is kept as overlayfs has it, since files below are still to be hidden: a device 0:0 in the
place of what was removed, `trusted.overlay.opaque` on a folder of which nothing below is to be seen. A folder
over something that is no folder hides that too, and all below it, so it becomes opaque.

Files are copied and not linked: how many names a file has can be seen inside, and must not depend on what
other layers there are. See: overlayfs documentation, "whiteouts and opaque directories", "Multiple lower
layers".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from errno import ENXIO
from pathlib import Path

_OPAQUE = "trusted.overlay.opaque"
_OF_OVERLAYFS = "trusted.overlay."
"""What it notes for itself: of no meaning in another folder."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE_BYTES = 64 << 20


def merge(layers: Sequence[Path], target: Path) -> None:
    """Make `target` of these layers, uppermost first.

    Requires: nobody writes to a layer meanwhile; `target` is not there, and only root gets into its parent.

    Raises:
        OSError: The disk is full or broken, or folders are too deep; `target` may be there in part.
    """
    target.mkdir(mode=0o700)
    with ExitStack() as stack:
        folders = [_opened(stack, layer) for layer in layers]
        made = _opened(stack, target)
        _Merge().folder(folders, made, is_closed=False)
        # Whether a root is opaque is of no meaning: the kernel shows all layers there.
        _copy_metadata(folders[0], made)


class _Merge:
    """One merge: which files of which layers have been copied under which name."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, int], str] = {}
        """Path of the copy of a file with several names, by its device and number: for the names to come."""
        self._path: list[str] = []
        self._top = -1

    def folder(self, sources: Sequence[int], target: int, *, is_closed: bool) -> None:
        """Merge what is in a folder of one path.

        Args:
            sources: Descriptors of that folder in the layers that show something of it, uppermost first.
            target: Descriptor of the new one, which is empty.
            is_closed: Whether nothing below all of these layers is to be seen in it.
        """
        if self._top < 0:
            self._top = target
        having: dict[str, list[int]] = {}
        for source in sources:
            with os.scandir(source) as entries:
                for entry in entries:
                    having.setdefault(entry.name, []).append(source)
        for name, holders in having.items():
            status = os.stat(name, dir_fd=holders[0], follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self._path.append(name)
                self._child(name, holders, target)
                self._path.pop()
            elif not (is_closed and _is_whiteout(status)):
                self._copy(name, status, holders[0], target)

    def _child(self, name: str, holders: Sequence[int], target: int) -> None:
        is_opaque = False
        with ExitStack() as stack:
            shown: list[int] = []
            for holder in holders:
                status = os.stat(name, dir_fd=holder, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    is_opaque = True
                    break
                shown.append(_opened(stack, name, holder))
                if _is_opaque(shown[-1]):
                    is_opaque = True
                    break
            os.mkdir(name, 0o700, dir_fd=target)
            made = _opened(stack, name, target)
            self.folder(shown, made, is_closed=is_opaque)
            _copy_metadata(shown[0], made)
            if is_opaque:
                os.setxattr(made, _OPAQUE, b"y")

    def _copy(self, name: str, status: os.stat_result, source: int, target: int) -> None:
        file = status.st_dev, status.st_ino
        if status.st_nlink > 1 and not _is_whiteout(status):
            path = "/".join([*self._path, name])
            if (known := self._names.setdefault(file, path)) != path:
                os.link(known, name, src_dir_fd=self._top, dst_dir_fd=target, follow_symlinks=False)
                return
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            _copy_content(name, status.st_size, source, target)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            # SAFETY: only root reaches the folder, and layers are mounted without devices.
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=target)
        if not _is_whiteout(status):
            _copy_metadata_of(f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{name}", status)


def _opened(stack: ExitStack, path: str | Path, folder: int | None = None) -> int:
    descriptor = os.open(path, _FOLDER, dir_fd=folder)
    stack.callback(os.close, descriptor)
    return descriptor


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(folder: int) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError:
        return False


def _copy_content(name: str, size: int, source: int, target: int) -> None:
    """Copy a file's data, and leave its holes holes."""
    with ExitStack() as stack:
        read = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        stack.callback(os.close, read)
        written = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        stack.callback(os.close, written)
        os.truncate(written, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(read, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == ENXIO:  # nothing but a hole to its end
                    return
                raise
            end = os.lseek(read, at, os.SEEK_HOLE)
            while at < end:
                copied = os.copy_file_range(read, written, min(end - at, _PIECE_BYTES), at, at)
                if not copied:
                    return
                at += copied


def _copy_metadata(source: int, target: int) -> None:
    _copy_metadata_of(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", os.fstat(source), follow=True)


def _copy_metadata_of(source: str, target: str, status: os.stat_result, *, follow: bool = False) -> None:
    """Owner, mode, attributes and times, in the order in which none takes another away.

    SAFETY: both are names in folders that are open, of which only root changes anything; no link is followed
    but the kernel's own from a descriptor to its folder.
    """
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=follow)
    if not stat.S_ISLNK(status.st_mode):
        Path(target).chmod(stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source, follow_symlinks=follow):
        if not name.startswith(_OF_OVERLAYFS):
            value = os.getxattr(source, name, follow_symlinks=follow)
            os.setxattr(target, name, value, follow_symlinks=follow)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=follow)
