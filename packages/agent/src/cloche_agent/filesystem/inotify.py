"""inotify(7) through ctypes: the standard library has no binding for it."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

IN_MODIFY = 0x002
IN_ATTRIB = 0x004
IN_MOVED_FROM = 0x040
IN_MOVED_TO = 0x080
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ISDIR = 0x4000_0000
_IN_ONLYDIR = 0x0100_0000
_IN_EXCL_UNLINK = 0x0400_0000

_WATCHED = (
    IN_MODIFY
    | IN_ATTRIB
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_MOVE_SELF
    | _IN_ONLYDIR
    | _IN_EXCL_UNLINK
)
_HEAD = struct.Struct("iIII")
_READ_BYTES = 64 * 1024

_NETWORK_FILE_SYSTEMS = frozenset({0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x00C36400, 0x5346414F})
"""f_type of NFS, SMB, CIFS, SMB2, Ceph and AFS: changes made by other machines send no events."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
_libc.inotify_rm_watch.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.statfs.argtypes = [ctypes.c_char_p, ctypes.c_char_p]


class RawEvent(NamedTuple):
    """One event as the kernel tells it."""

    watch: int
    mask: int
    name: str
    cookie: int
    """The same for both halves of a rename."""


class Inotify:
    """One inotify instance; its descriptor does not block."""

    def __init__(self) -> None:
        """Make an instance.

        Raises:
            OSError: The limit of instances is reached (EMFILE).
        """
        self.descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "")

    def add(self, path: str) -> int:
        """Watch a folder and return the watch's number.

        Raises:
            OSError: No such folder, no right to read it, or the limit of watches is reached (ENOSPC).
        """
        return _checked(_libc.inotify_add_watch(self.descriptor, os.fsencode(path), _WATCHED), path)

    def remove(self, watch: int) -> None:
        """End one watch; nothing happens when the kernel has ended it already."""
        _libc.inotify_rm_watch(self.descriptor, watch)

    def read(self) -> list[RawEvent]:
        """Events that are there; none when there are none."""
        try:
            data = os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        events: list[RawEvent] = []
        offset = 0
        while offset < len(data):
            watch, mask, cookie, length = _HEAD.unpack_from(data, offset)
            offset += _HEAD.size
            name = data[offset : offset + length].rstrip(b"\0")
            events.append(RawEvent(watch, mask, os.fsdecode(name), cookie))
            offset += length
        return events

    def close(self) -> None:
        """Give the instance back."""
        os.close(self.descriptor)


def is_on_network(path: str) -> bool:
    """Whether `path` lies on a file system whose changes may happen elsewhere.

    Raises:
        OSError: There is no such path.
    """
    # SAFETY: the kernel's struct statfs has 120 bytes on 64-bit machines; the buffer has more.
    answer = ctypes.create_string_buffer(512)
    _checked(_libc.statfs(os.fsencode(path), answer), path)
    return int.from_bytes(answer.raw[:4], "little") in _NETWORK_FILE_SYSTEMS


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
