"""Resolve names in a tree that hostile programs write to, and never leave it.

Every path is opened from the volume's root by openat2(2), which takes the root for `/`: absolute links and
`..` stay inside, whatever is renamed meanwhile. Links of procfs and other mounts are refused. What is done
with an entry is done by descriptor, or by one name in an open folder without following a link.
"""

from __future__ import annotations

import os
import posixpath

from cloche_server.isolation import syscalls
from cloche_wire.errors import InvalidArgument

MAX_PATH_BYTES = 4095
INSIDE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
"""Links are followed, inside the volume only."""
PLAIN = syscalls.RESOLVE_PLAIN
"""No link is followed."""


def normalized(path: str) -> str:
    """Return the path as it is answered: absolute, without `.`, `..` and doubled slashes.

    Raises:
        InvalidArgument: Empty, too long, or holding a NUL.
    """
    if not path or "\0" in path:
        raise InvalidArgument("path is empty or holds a NUL byte")
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("path is not UTF-8") from None
    if length > MAX_PATH_BYTES:
        raise InvalidArgument(f"path is longer than {MAX_PATH_BYTES} bytes")
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def open_inside(root: int, path: str, flags: int) -> int:
    """Open what a normalized path names; the caller closes it.

    Never waits for the other end of a fifo, and never makes anything.

    Raises:
        OSError: ENOENT, ENOTDIR, ELOOP, ENXIO for a socket, EACCES for a device.
    """
    if not flags & os.O_PATH:
        flags |= os.O_NONBLOCK | os.O_NOCTTY
    return syscalls.openat2(root, path.lstrip("/").encode() or b".", flags, INSIDE)


def open_parent(root: int, path: str) -> tuple[int, str]:
    """Open the folder that a normalized path lies in, and return the name in it; `.` for the root itself."""
    parent, name = posixpath.split(path)
    return open_inside(root, parent, os.O_RDONLY | os.O_DIRECTORY), name or "."


def open_child(folder: int, name: str) -> int:
    """Open a folder by its name in another one, following no link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    return syscalls.openat2(folder, os.fsencode(name), flags, PLAIN)
