"""The one seam to the kernel: system calls that Python 3.11 has no binding for.

Every function raises OSError with the errno of the call and a message that names it. Single-threaded users
only where the call changes the calling process (`unshare`); `setns` of a network namespace is per thread
(setns(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Generator
from pathlib import Path

CLONE_NEWNS = 0x0002_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18
MS_REMOUNT = 0x20
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 8, 16
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, 0x80000
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
_MOUNT_ATTR_IDMAP = 0x0010_0000
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
# The same on every architecture (asm-generic).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 428, 429, 430, 431, 432
_SYS_OPENAT2, _SYS_MOUNT_SETATTR = 437, 442

_OPEN_ATTEMPTS = 128

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    """`struct open_how` of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


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
    tree = clone_mount(source)
    try:
        map_ids(tree, user_namespace, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV)
        target_folder = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attach_mount(tree, target_folder)
        finally:
            os.close(target_folder)
    finally:
        os.close(tree)


def clone_mount(source: str) -> int:
    """Return a descriptor of a mount of `source` that stands nowhere, and goes with the descriptor."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    return _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, source.encode(), flags), f"open_tree {source}")


def map_ids(mount: int, user_namespace: int, attributes: int) -> None:
    """Set a mount's attributes, and shift its ids as the user namespace maps them.

    Requires: the mount stands nowhere yet and never stood anywhere (mount_setattr(2)).
    """
    # SAFETY: the mount is detached until every attribute is set, so nobody ever sees it without them.
    value = _MountAttr(_MOUNT_ATTR_IDMAP | attributes, 0, 0, user_namespace)
    size = ctypes.sizeof(value)
    _check(
        _libc.syscall(_SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(value), size),
        "mount_setattr",
    )


def attach_mount(mount: int, target: int) -> None:
    """Put a detached mount over the folder behind the descriptor `target`: no path is followed."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _check(_libc.syscall(_SYS_MOVE_MOUNT, mount, b"", target, b"", flags), "move_mount")


def mount_file_system(kind: str, source: str, options: dict[str, str | None], attributes: int) -> int:
    """Return a descriptor of a new mount of a file system that stands nowhere, and goes with the descriptor.

    A file system that is mounted already is shared: the options of its first mount hold.

    Args:
        kind: As in /proc/filesystems.
        source: The block device.
        options: Of the file system, by name; None for those without a value.
        attributes: MOUNT_ATTR_*.

    See: fsopen(2), fsconfig(2), fsmount(2).
    """
    context = _check(_libc.syscall(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC), f"fsopen {kind}")
    try:
        for name, value in {"source": source, **options}.items():
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else value.encode()
            _check(_libc.syscall(_SYS_FSCONFIG, context, command, name.encode(), text, 0), f"fsconfig {name}")
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), f"mount {kind}")
        return _check(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes), "fsmount")
    finally:
        os.close(context)


def openat2(folder: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` below the folder behind a descriptor, never leaving it as `resolve` says (openat2(2)).

    The descriptor is closed at exec. EAGAIN, which a rename elsewhere at that moment can cause, is tried
    again a few times.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    result = -1
    for _ in range(_OPEN_ATTEMPTS):
        result = _libc.syscall(_SYS_OPENAT2, folder, path, ctypes.byref(how), ctypes.sizeof(how))
        if result >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    return _check(result, "openat2")


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
