"""How the api and the edge become nobody: own user id, no groups, no capabilities, no way back.

One capability may stay, CAP_DAC_READ_SEARCH, and only where Python or our packages lie in a folder that
others cannot read, or the state folder in one that they cannot enter (below /root): without it the process
could not load its own modules or reach its own files.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

import cloche_server
import cloche_wire
from cloche_server.isolation import syscalls

_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAP_DAC_READ_SEARCH = 2
_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_FOWNER, _CAP_FSETID = 0, 1, 3, 4

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop(uid: int, folders: Iterable[Path]) -> bool:
    """Become `uid` for good; say whether the right to read everything had to stay.

    Args:
        uid: User and group to become.
        folders: Where the process has to reach its own files.

    Requires: root, one thread.
    Leaves: real, effective and saved ids `uid`; no supplementary groups; no new privileges by exec.
    """
    keeps_reading = not (interpreter_is_open_to_others() and all(map(can_be_entered_by_others, folders)))
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if keeps_reading:
        syscalls.prctl(_PR_SET_KEEPCAPS, 1)
    # SAFETY: groups first, while we still may; all three ids at once, so that nothing can switch back.
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _keep_only({_CAP_DAC_READ_SEARCH} if keeps_reading else set())
    return keeps_reading


def confine(folder: Path, first_id: int, id_count: int) -> None:
    """Become root of a new user namespace, with nothing of the machine in sight but one folder.

    What is left are four capabilities over files that show in the namespace's ids: to own, read and change
    them as the root of a sandbox would. For everything else of the machine the process is nobody.

    Requires: root, one thread, and every module loaded: Python's own files cannot be reached any more.
    Leaves: ids 0 inside, `first_id` outside; `folder` as `/`; an empty network.
    """
    user_namespace = syscalls.user_namespace([(0, first_id, id_count)])
    # SAFETY: the folder is root's alone; a root without CAP_SYS_CHROOT over this mount namespace, which the
    # one below has not, cannot leave it again.
    os.chroot(folder)
    os.chdir("/")
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC)
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.setgroups([])
    # SAFETY: entered before the change of ids, which are those of the new namespace.
    syscalls.setns(user_namespace, syscalls.CLONE_NEWUSER)
    os.close(user_namespace)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _keep_only({_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_FOWNER, _CAP_FSETID})


def raise_open_files() -> None:
    """Allow as many open files as the machine lets us have: the edge holds two for each connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def interpreter_is_open_to_others() -> bool:
    """Whether a stranger to this machine can read Python and all our packages."""
    packages = [package.__file__ for package in (cloche_server, cloche_wire) if package.__file__]
    needed = [sys.executable, os.__file__, *packages, *filter(None, sys.path)]
    return all(is_open_to_others(Path(path)) for path in needed if Path(path).exists())


def can_be_entered_by_others(folder: Path) -> bool:
    """Whether everybody may reach what lies in this folder by its name, by the modes alone."""
    real = folder.resolve()
    return all(above.stat().st_mode & stat.S_IXOTH for above in (real, *real.parents))


def is_open_to_others(path: Path) -> bool:
    """Whether everybody may read this file or folder and enter every folder above it, by its mode alone."""
    real = path.resolve()
    wanted = stat.S_IROTH | stat.S_IXOTH if real.is_dir() else stat.S_IROTH
    return real.stat().st_mode & wanted == wanted and can_be_entered_by_others(real.parent)


def _keep_only(capabilities: set[int]) -> None:
    mask = sum(1 << number for number in capabilities)
    header = _Header(_CAPABILITY_VERSION_3, 0)
    sets = (_Set * 2)(_Set(mask, mask, 0), _Set(0, 0, 0))
    # SAFETY: capset(2) can only take away here: permitted can never grow.
    if _libc.capset(ctypes.byref(header), ctypes.byref(sets)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")
