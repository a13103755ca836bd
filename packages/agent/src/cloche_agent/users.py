"""The sandbox's own users, read from its /etc/passwd and /etc/group.

The `pwd` module is not used: it goes through the C library's name service, which loads shared objects that
the template chose into a process that is root (CVE-2019-14271 is that mistake).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from cloche_wire.errors import Unauthenticated

_PASSWD = "/etc/passwd"  # noqa: S105 - a path
_GROUP = "/etc/group"
_LARGEST_FILE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class User:
    """An account of the sandbox."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    groups: tuple[int, ...]
    """Every group it is in, its own `gid` included."""


class _Names(NamedTuple):
    users: dict[str, tuple[int, int, str, str]]
    user_names: dict[int, str]
    groups: dict[int, str]
    members: dict[str, tuple[int, ...]]


def lookup(name: str) -> User:
    """The account `name`.

    Raises:
        Unauthenticated: There is none.
    """
    names = _names()
    found = names.users.get(name)
    if found is None:
        raise Unauthenticated(f"invalid username: '{name}'")
    uid, gid, home, shell = found
    groups = tuple(sorted({gid, *names.members.get(name, ())}))
    return User(name, uid, gid, home, shell, groups)


def user_name(uid: int) -> str:
    """Name of `uid`, or the number itself."""
    return _names().user_names.get(uid) or str(uid)


def group_name(gid: int) -> str:
    """Name of `gid`, or the number itself."""
    return _names().groups.get(gid) or str(gid)


def _names() -> _Names:
    return _parse(_version(_PASSWD), _version(_GROUP))


def _version(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - on the path of every file call
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)
def _parse(passwd: tuple[int, int, int], group: tuple[int, int, int]) -> _Names:
    """Both files as tables; the arguments are their versions, so that a change is seen at the next call."""
    users: dict[str, tuple[int, int, str, str]] = {}
    user_names: dict[int, str] = {}
    for fields in _lines(_PASSWD, 7):
        if fields[2].isdecimal() and fields[3].isdecimal():
            users.setdefault(
                fields[0], (int(fields[2]), int(fields[3]), fields[5] or "/", fields[6] or "/bin/sh")
            )
            user_names.setdefault(int(fields[2]), fields[0])
    groups: dict[int, str] = {}
    members: dict[str, tuple[int, ...]] = {}
    for fields in _lines(_GROUP, 4):
        if fields[2].isdecimal():
            gid = int(fields[2])
            groups.setdefault(gid, fields[0])
            for member in filter(None, fields[3].split(",")):
                members[member] = (*members.get(member, ()), gid)
    return _Names(users, user_names, groups, members)


def _lines(path: str, count: int) -> list[list[str]]:
    """Lines of `path` that have `count` fields; nothing for a file that is missing or no regular file."""
    try:
        # The sandbox's root may have put a FIFO there: never wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return []
        text = os.read(descriptor, _LARGEST_FILE_BYTES).decode("utf-8", "replace")
    finally:
        os.close(descriptor)
    return [fields for line in text.splitlines() if len(fields := line.split(":")) == count]
