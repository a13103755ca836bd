"""Make, change and remove what a volume holds."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import stat
import time
from itertools import islice
from typing import NamedTuple

from cloche_server.isolation import syscalls
from cloche_server.volumes import paths
from cloche_wire.errors import AlreadyExists, Conflict, InvalidArgument, PathNotFound

FILE_MODE, FOLDER_MODE = 0o644, 0o755
REMOVAL_S = 300.0
"""How long the removal of a tree may take that sandboxes go on writing to."""

_BATCH = 1000


@functools.cache
def own_descriptors() -> int:
    """Return the folder that a file without a name is linked from.

    Called once before the process is confined, which then has no /proc; by that process and not when the
    module is loaded, since `self` is whoever opens it.
    """
    return os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


class Attributes(NamedTuple):
    """Owner and mode that were asked for; None leaves what is there, or the default."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


def make_folder(root: int, path: str, attributes: Attributes, *, force: bool) -> None:
    """Make a folder.

    Args:
        root: Descriptor of the volume's root.
        path: Normalized.
        attributes: Of every folder that is made.
        force: Make folders above it too, and be content with one that is there.

    Raises:
        AlreadyExists: Something is there; or a file is, where a folder has to be made above.
        OSError: ENOENT, ...
    """
    names = path.strip("/").split("/") if path != "/" else []
    if not names and not force:
        raise AlreadyExists(f"path exists: {path}")
    for count in range(1 if force else len(names), len(names) + 1):
        here = "/" + "/".join(names[:count])
        is_last = count == len(names)
        if force and _is_folder(root, here):
            continue
        parent, name = paths.open_parent(root, here)
        try:
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                if is_last or not force:
                    raise AlreadyExists(f"path exists: {path}") from None
                raise AlreadyExists(f"not a folder: {here}") from None
            made = paths.open_child(parent, name)
        finally:
            os.close(parent)
        try:
            _apply(made, attributes, 0, 0, FOLDER_MODE)
        finally:
            os.close(made)


def change(root: int, path: str, attributes: Attributes) -> None:
    """Change owner and mode of an entry; of a link, the link's own.

    Raises:
        InvalidArgument: A mode for what has none of its own (a link, a socket, a device).
        OSError: As `open_inside`.
    """
    parent, name = paths.open_parent(root, path)
    try:
        uid = -1 if attributes.uid is None else attributes.uid
        gid = -1 if attributes.gid is None else attributes.gid
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        if attributes.mode is not None:
            _change_mode(parent, name, path, attributes.mode)
    finally:
        os.close(parent)


def _change_mode(parent: int, name: str, path: str, mode: int) -> None:
    try:
        opened = os.open(
            name,
            os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC,
            dir_fd=parent,
        )
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EACCES}:
            raise InvalidArgument(f"neither a file nor a folder: {path}") from None
        raise
    try:
        os.fchmod(opened, mode)
    finally:
        os.close(opened)


class Upload:
    """A file on its way: it has no name until it is complete, so that nobody ever sees half of it."""

    def __init__(self, root: int, path: str, *, force: bool) -> None:
        """Begin; nothing can be seen of it yet.

        Args:
            root: Descriptor of the volume's root.
            path: Normalized.
            force: Take the place of a file that is there; of a link, the link's place.

        Raises:
            AlreadyExists: Something is there that may not be replaced.
            OSError: ENOENT, ENOSPC, ...
        """
        self._path = path
        self._force = force
        self._file = -1
        self._parent, self._name = paths.open_parent(root, path)
        try:
            self._before = self._look()
            # SAFETY: the descriptor is a folder reached without leaving the volume; the new file has no name.
            self._file = syscalls.openat2(
                self._parent, b".", os.O_TMPFILE | os.O_WRONLY, paths.PLAIN, mode=0o600
            )
        except BaseException:
            self.close()
            raise

    def _look(self) -> os.stat_result | None:
        try:
            before = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(before.st_mode):
            raise AlreadyExists(f"path is a folder: {self._path}")
        if not self._force:
            raise AlreadyExists(f"path exists: {self._path}", hint="force=true replaces it")
        return before if stat.S_ISREG(before.st_mode) else None

    def write(self, data: bytes | bytearray) -> None:
        """Append.

        Raises:
            OSError: ENOSPC, EDQUOT: the volume is full.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def finish(self, attributes: Attributes) -> None:
        """Give the file its owner, its mode and its name; what is not asked for stays as it was.

        Raises:
            AlreadyExists: Something has come to be there meanwhile.
            OSError: As above.
        """
        before = self._before
        owner = (0, 0) if before is None else (before.st_uid, before.st_gid)
        mode = FILE_MODE if before is None else stat.S_IMODE(before.st_mode)
        _apply(self._file, attributes, *owner, mode)
        if not self._force or before is None:
            try:
                self._link(self._name)
            except FileExistsError:
                if not self._force:
                    raise AlreadyExists(f"path exists: {self._path}") from None
            else:
                return
        self._replace()

    def _replace(self) -> None:
        staged = f".cloche-{secrets.token_hex(8)}"
        self._link(staged)
        try:
            os.rename(staged, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(staged, dir_fd=self._parent)
            if error.errno in {errno.EISDIR, errno.ENOTEMPTY}:
                raise AlreadyExists(f"path is a folder: {self._path}") from None
            raise

    def _link(self, name: str) -> None:
        os.link(
            str(self._file), name,
            src_dir_fd=own_descriptors(), dst_dir_fd=self._parent, follow_symlinks=True,
        )  # fmt: skip

    def close(self) -> None:
        """Let go. A file without a name is gone with this. Idempotent."""
        for descriptor in (self._file, self._parent):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._parent = -1


def remove(root: int, path: str) -> None:
    """Remove an entry; a folder with all that is in it.

    Raises:
        InvalidArgument: The root itself.
        Conflict: Sandboxes write to it faster than it is removed.
        OSError: ENOENT, ...
    """
    if path == "/":
        raise InvalidArgument("the root of a volume cannot be removed", hint="delete the volume")
    parent, name = paths.open_parent(root, path)
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        folder = paths.open_child(parent, name)
        try:
            _empty(folder, path)
        finally:
            os.close(folder)
        _remove_emptied(parent, name, path)
    finally:
        os.close(parent)


def _remove_emptied(parent: int, name: str, path: str) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise Conflict(f"sandboxes write to it while it is removed: {path}") from None


def _empty(folder: int, path: str) -> None:
    """Remove all that a folder holds, however deep, with two descriptors.

    A tenant nests folders a million deep. So a folder inside is not entered and left again: its own folders
    are moved up beside it, until it can be removed itself.
    """
    deadline_s = time.monotonic() + REMOVAL_S
    counter = 0
    while names := _some_names(folder):
        for name in names:
            if time.monotonic() > deadline_s:
                raise Conflict(f"sandboxes write to it while it is removed: {path}")
            counter = _remove_child(folder, name, counter)


def _some_names(folder: int) -> list[str]:
    with os.scandir(folder) as scan:
        return [entry.name for entry in islice(scan, _BATCH)]


def _remove_child(folder: int, name: str, counter: int) -> int:
    with contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            counter = _remove_folder(folder, name, counter)
    return counter


def _remove_folder(folder: int, name: str, counter: int) -> int:
    try:
        os.rmdir(name, dir_fd=folder)
        return counter
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
    child = paths.open_child(folder, name)
    try:
        for below in _some_names(child):
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.unlink(below, dir_fd=child)
                except IsADirectoryError:
                    counter += 1
                    above = f".cloche-{counter}-{secrets.token_hex(4)}"
                    os.rename(below, above, src_dir_fd=child, dst_dir_fd=folder)
    finally:
        os.close(child)
    with contextlib.suppress(OSError):  # written to meanwhile: the next round finds it again
        os.rmdir(name, dir_fd=folder)
    return counter


def open_file(root: int, path: str) -> tuple[int, int]:
    """Open a file to be read; the caller closes it. Links are followed, inside the volume.

    Returns:
        Its descriptor and its size in bytes.

    Raises:
        PathNotFound: There is something else than a file.
        OSError: As `open_inside`.
    """
    try:
        opened = paths.open_inside(root, path, os.O_RDONLY)
    except OSError as error:
        # A socket, or a device of a mount without devices.
        if error.errno not in {errno.ENXIO, errno.EACCES, errno.ENODEV}:
            raise
        raise PathNotFound(f"not a file: {path}") from None
    status = os.fstat(opened)
    if not stat.S_ISREG(status.st_mode):
        os.close(opened)
        raise PathNotFound(f"not a file: {path}")
    return opened, status.st_size


def _is_folder(root: int, path: str) -> bool:
    try:
        os.close(paths.open_inside(root, path, os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return False
        raise
    return True


def _apply(opened: int, attributes: Attributes, uid: int, gid: int, mode: int) -> None:
    os.fchown(
        opened,
        uid if attributes.uid is None else attributes.uid,
        gid if attributes.gid is None else attributes.gid,
    )
    # After the owner, whose change takes setuid bits away.
    os.fchmod(opened, mode if attributes.mode is None else attributes.mode)
