"""Doing file work with the rights of a user of the sandbox, in a process that is root.

The kernel decides every access by itself: for the length of one `with` block this thread's file-system ids
and groups are the user's. Going from 0 to another file-system uid also takes CAP_CHOWN, CAP_DAC_OVERRIDE,
CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID and their like out of the effective set (capabilities(7)), so a
symbolic link into a folder of root ends in EACCES, however it is raced.

Chosen over a forked child per request (1.5 ms and a copy of every byte) and over worker threads (fork is only
safe with one thread): entering and leaving costs about 6 µs. The price: no `await` inside the block, so each
block is short.

gVisor's kernel has no file-system ids of their own; there the effective ids are changed. They do the same,
and the real and saved ones stay root's, so that no program of that user may signal this process (kill(2)).
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloche_wire.errors import Internal, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Generator

    from cloche_agent.users import User

_libc = ctypes.CDLL(None, use_errno=True)
_setfsuid = _libc.setfsuid
_setfsgid = _libc.setfsgid
for _function in (_setfsuid, _setfsgid):
    _function.argtypes = [ctypes.c_uint32]
    _function.restype = ctypes.c_int

_ASK = 0xFFFFFFFF
"""Not a valid id: the call changes nothing and answers the present one."""


def _act_by_file_system_ids(uid: int, gid: int) -> bool:
    """Whether files are accessed as that user from now on."""
    # From a user back to root the uid comes first: it brings the capabilities that the gid takes.
    if uid == 0:
        _setfsuid(uid)
    _setfsgid(gid)
    _setfsuid(uid)
    return _setfsuid(_ASK) == uid and _setfsgid(_ASK) == gid


def _act_by_effective_ids(uid: int, gid: int) -> bool:
    """The same where there are no others."""
    if uid == 0:
        os.seteuid(uid)
    os.setegid(gid)
    os.seteuid(uid)
    return os.geteuid() == uid and os.getegid() == gid


_act = _act_by_effective_ids if _setfsuid(_ASK) == -1 else _act_by_file_system_ids


@contextmanager
def acting_as(user: User) -> Generator[None]:
    """Make file operations of the block those of `user`. Never await inside, never nest.

    Leaves: the process as it was, also on errors.

    Raises:
        PermissionDenied: This process is not root, and `user` is somebody else.
    """
    if os.geteuid() != 0:
        if user.uid != os.geteuid():
            raise PermissionDenied(f"agent is not root and cannot act as '{user.name}'")
        yield
        return
    if user.uid == 0:
        yield
        return
    groups = os.getgroups()
    try:
        # SAFETY: the real, effective and saved ids stay 0, so the way back is always open; no other thread
        # exists whose rights could change with ours; a failure is noticed below, before anything is done in
        # the user's name.
        os.setgroups(user.groups)
        if not _act(user.uid, user.gid):
            raise Internal(f"cannot act as '{user.name}'")
        yield
    finally:
        # SAFETY: a process that cannot return must not live on.
        if not _act(0, 0):
            os.abort()
        os.setgroups(groups)
