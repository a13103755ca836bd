"""The one seam to the kernel: system calls that Python 3.11 has no binding for.

Every function raises OSError with the errno of the call and a message that names it. Single-threaded users
only where the call changes the calling process (`unshare`); `setns` of a network namespace is per thread
(setns(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Generator
from pathlib import Path

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18
MS_REMOUNT = 0x20
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, 0x80000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_IDMAP = 1, 4, 0x0010_0000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = (
    428,
    429,
    442,
)  # the same on every architecture (asm-generic)

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones (unshare(2))."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Enter the namespace behind `descriptor`, which must be of that kind (setns(2))."""
    _check(_libc.setns(descriptor, kind), "setns")


def prctl(option: int, value: int) -> None:
    """Set one attribute of the calling process (prctl(2))."""
    _check(_libc.prctl(option, value, 0, 0, 0), "prctl")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount (mount(2)). The caller is in a private mount namespace and made `target` itself."""
    encoded = [value.encode() if value is not None else None for value in (source, target, kind)]
    _check(_libc.mount(*encoded, flags, options.encode()), f"mount {kind or ''} at {target}")


def unmount(target: str, flags: int = 0) -> None:
    """Unmount (umount2(2))."""
    _check(_libc.umount2(target.encode(), flags), f"unmount {target}")


def enter_private_mounts() -> None:
    """Give the calling process its own mount namespace, out of which nothing propagates.

    Requires: a single-threaded process with CAP_SYS_ADMIN.
    """
    # SAFETY: only this process leaves the shared mount table; MS_PRIVATE comes before any other mount call
    # can run.
    unshare(CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE)


def mount_idmapped(source: str, target: str, user_namespace: int) -> None:
    """Show `source` at `target` read-only, without devices, with ids shifted as the user namespace maps them.

    See: mount_setattr(2), "ID-mapped mounts".
    """
    # SAFETY: the clone is detached until every attribute is set, so nobody ever sees it writable or unmapped.
    tree = _check(
        _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, source.encode(), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC),
        f"open_tree {source}",
    )
    try:
        attributes = _MountAttr(
            _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NODEV, 0, 0, user_namespace
        )
        _check(
            _libc.syscall(
                _SYS_MOUNT_SETATTR,
                tree,
                b"",
                _AT_EMPTY_PATH,
                ctypes.byref(attributes),
                ctypes.sizeof(attributes),
            ),
            f"mount_setattr {source}",
        )
        _check(
            _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH),
            f"move_mount {target}",
        )
    finally:
        os.close(tree)


def user_namespace(first_id: int, count: int) -> int:
    """Return a descriptor of a new user namespace that maps 0.. to `first_id`.. for users and groups.

    A throw-away child makes it and waits for its maps, as user_namespaces(7) asks: the maps of a user
    namespace are written from outside by someone with CAP_SETUID and CAP_SETGID.
    """
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            unshare(CLONE_NEWUSER)
            os.write(ready[1], b"x")
            os.close(go[1])
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        os.close(ready[1])
        if not os.read(ready[0], 1):
            raise OSError("cannot make a user namespace")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(f"0 {first_id} {count}\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready[0])
        os.close(go[0])
        os.close(go[1])
        os.waitpid(child, 0)


@contextlib.contextmanager
def network_namespace(descriptor: int) -> Generator[None, None, None]:
    """Run the calling thread inside a network namespace, and bring it back whatever happens."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # SAFETY: CLONE_NEWNET moves this thread only (setns(2)); it must not await or hand over while it is
        # away.
        setns(descriptor, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)


def new_network_namespace() -> int:
    """Return a descriptor of a fresh network namespace; the calling thread stays in its own."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # SAFETY: as in `network_namespace`; the new one lives as long as the descriptor or a process in it.
        unshare(CLONE_NEWNET)
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            setns(own, CLONE_NEWNET)
    finally:
        os.close(own)
