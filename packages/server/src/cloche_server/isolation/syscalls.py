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
import socket
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NoReturn

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18
MS_REMOUNT = 0x20
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 1, 2, 4
RESOLVE_BENEATH, RESOLVE_IN_ROOT = 8, 16
RESOLVE_PLAIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
"""No link is followed, and the mount is never left."""
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, 0x80000
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
_MOUNT_ATTR_IDMAP = 0x0010_0000
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 1, 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
# The same on every architecture (asm-generic).
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 428, 429, 430, 431, 432
_SYS_OPENAT2, _SYS_MOUNT_SETATTR = 437, 442

_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_FORK_SIBLING = 0x8000 | 17
"""CLONE_PARENT, and SIGCHLD at the end."""

_OPEN_ATTEMPTS = 128
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECBIT_NO_SETUID_FIXUP = 4
_CAPABILITIES = 64
_CAPABILITY_VERSION_3 = 0x2008_0522
_SECCOMP_MODE_FILTER = 2
_INSTRUCTION_BYTES = 8
_LAST_DESCRIPTOR = (1 << 31) - 2

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _CapabilityHeader(ctypes.Structure):
    """`cap_user_header_t` of capset(2)."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _FilterProgram(ctypes.Structure):
    """`struct sock_fprog` of seccomp(2)."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


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


def mount_idmapped(source: str, target: str, user_namespace: int, attributes: int) -> None:
    """Show `source` at `target` with ids shifted as the user namespace maps them, and with MOUNT_ATTR_*.

    See: mount_setattr(2), "ID-mapped mounts".
    """
    tree = clone_mount(source)
    try:
        map_ids(tree, user_namespace, attributes)
        target_folder = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attach_mount(tree, target_folder)
        finally:
            os.close(target_folder)
    finally:
        os.close(tree)


def clone_mount(source: str, folder: int = _AT_FDCWD, *, recursive: bool = False) -> int:
    """Return a descriptor of a mount of `source` that stands nowhere, and goes with the descriptor.

    Args:
        source: A path, below `folder` where it is relative; the empty one is `folder` itself.
        folder: Descriptor of a folder.
        recursive: Take what is mounted below along.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    flags |= 0 if source else _AT_EMPTY_PATH
    return _check(_libc.syscall(_SYS_OPEN_TREE, folder, source.encode(), flags), f"open_tree {source}")


def map_ids(mount: int, user_namespace: int, attributes: int) -> None:
    """Set a mount's attributes, and shift its ids as the user namespace maps them.

    Requires: the mount stands nowhere yet and never stood anywhere (mount_setattr(2)).
    """
    # SAFETY: the mount is detached until every attribute is set, so nobody ever sees it without them.
    _set_attributes(mount, _MountAttr(_MOUNT_ATTR_IDMAP | attributes, 0, 0, user_namespace))


def add_attributes(mount: int, attributes: int) -> None:
    """Set attributes of a detached mount beside those that it has (mount_setattr(2))."""
    _set_attributes(mount, _MountAttr(attributes, 0, 0, 0))


def _set_attributes(mount: int, value: _MountAttr) -> None:
    size = ctypes.sizeof(value)
    _check(
        _libc.syscall(_SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(value), size),
        "mount_setattr",
    )


def attach_mount(mount: int, target: int) -> None:
    """Put a detached mount over the folder or file behind the descriptor `target`: no path is followed."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _check(_libc.syscall(_SYS_MOVE_MOUNT, mount, b"", target, b"", flags), "move_mount")


def mount_file_system(kind: str, source: str, options: dict[str, str | None], attributes: int) -> int:
    """Return a descriptor of a new mount of a file system that stands nowhere, and goes with the descriptor.

    A file system that is mounted already is shared: the options of its first mount hold.

    Args:
        kind: As in /proc/filesystems.
        source: The block device; the table shows it, whatever it is.
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


def change_root(root: int) -> None:
    """Make the mount behind a descriptor the root, and let go of all that stood there (pivot_root(2)).

    Requires: a mount namespace of the calling process alone, in which `root` is mounted.
    """
    os.fchdir(root)
    # SAFETY: both names are the new root, so the old one is stacked over it and goes with the unmount; no
    # path inside is read.
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    unmount(".", MNT_DETACH)
    os.chdir("/")


def limit_capabilities(kept: frozenset[int]) -> None:
    """Leave the calling process, and all that it will ever run, these capabilities: in effect and permitted.

    None stays inheritable or ambient, and the bounding set holds no other (capabilities(7)).
    """
    for number in range(_CAPABILITIES):
        try:
            if number not in kept:
                prctl(PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # this kernel's last one was before
    prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(ctypes.byref(header), data), "capset")


@contextlib.contextmanager
def kept_capabilities() -> Generator[None, None, None]:
    """Have a change of ids leave the capabilities of the calling thread alone in this block.

    Requires: CAP_SETPCAP. See: capabilities(7), SECBIT_NO_SETUID_FIXUP.
    """
    prctl(PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    try:
        yield
    finally:
        prctl(PR_SET_SECUREBITS, 0)


def set_file_ids(number: int) -> None:
    """Have the calling thread make and open files as that user and group (setfsuid(2), setfsgid(2)).

    Raises:
        OSError: It may not; the calls themselves do not tell.
    """
    for call in (_libc.setfsgid, _libc.setfsuid):
        call(number)
        if call(-1) != number:
            raise OSError(errno.EPERM, f"cannot make files as {number}")


def load_filter(program: bytes) -> None:
    """Have every later system call of this process and its children pass a filter (seccomp(2)).

    Requires: CAP_SYS_ADMIN in the process's user namespace; no new privileges are still possible after it.
    """
    value = _FilterProgram(len(program) // _INSTRUCTION_BYTES, program)
    _check(
        _libc.prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(value), 0, 0), "load the call filter"
    )


def syncfs(descriptor: int) -> None:
    """Have all that was written to the file system of an open file on disk."""
    _check(_libc.syncfs(descriptor), "syncfs")


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor that is not named."""
    first = 0
    for number in [*sorted(kept), _LAST_DESCRIPTOR + 1]:
        if first < number:
            os.closerange(first, number)
        first = number + 1


def set_title(title: str) -> None:
    """What `ps` shows of the calling process: its name, and in the place of its arguments.

    See: proc_pid_stat(5), arg_start; proc_pid_cmdline(5).
    """
    prctl_name = ctypes.create_string_buffer(title.encode()[:15])
    _check(_libc.prctl(PR_SET_NAME, prctl_name, 0, 0, 0), "prctl")
    text = Path("/proc/self/stat").read_text()
    start, end = map(int, text[text.rindex(")") + 2 :].split()[45:47])
    # SAFETY: the range is this process's own arguments, which the kernel copied there at its start.
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title.encode(), min(len(title.encode()), end - start - 1))


def fork_sibling() -> int:
    """Fork a child of the caller's own parent; otherwise as os.fork (clone(2), CLONE_PARENT).

    For a process between two namespaces: it may end, and the parent still learns how the child does.
    Requires: one thread, so that no lock of the C library is held by somebody who is not in the child.
    """
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    number = _SYS_CLONE[os.uname().machine]
    result = ctypes.PyDLL(None, use_errno=True).syscall(number, _FORK_SIBLING, 0, 0, 0, 0)
    if result == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    return _check(result, "clone")


def user_namespace(extents: Sequence[tuple[int, int, int]], owner: int | None = None) -> int:
    """Return a descriptor of a new user namespace, a child of the caller's.

    A throw-away child makes it and waits for its maps, as user_namespaces(7) asks: the maps of a user
    namespace are written from outside by someone with CAP_SETUID and CAP_SETGID.

    Args:
        extents: First id inside, first id in the caller's namespace, and how many; for users and groups.
        owner: Id in the caller's namespace that the new one belongs to: it has every right over it. The
            caller's own where none is given; that one has to be mapped (user_namespaces(7)).
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _be_user_namespace(theirs, owner)
    theirs.close()
    try:
        # Opened by the child itself: nobody else may look into it, once its ids have changed.
        _, found, _, _ = socket.recv_fds(ours, 1, 1)
        if not found:
            raise OSError("cannot make a user namespace")
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(text)
        os.set_inheritable(found[0], False)
        return found[0]
    finally:
        ours.close()
        os.waitpid(child, 0)


def _be_user_namespace(parent: socket.socket, owner: int | None) -> NoReturn:
    """Make one, hand it over, and stay in it until its maps are written."""
    try:
        if owner is not None:
            os.setresgid(owner, owner, owner)
            os.setresuid(owner, owner, owner)
        unshare(CLONE_NEWUSER)
        socket.send_fds(parent, [b"x"], [os.open("/proc/self/ns/user", os.O_RDONLY)])
        parent.recv(1)
    finally:
        os._exit(0)


@contextlib.contextmanager
def network_namespace(descriptor: int) -> Generator[int, None, None]:
    """Run the calling thread inside a network namespace, and bring it back whatever happens.

    Yields:
        A descriptor of the namespace that it is brought back to, open until then.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # SAFETY: CLONE_NEWNET moves this thread only (setns(2)); it must not await or hand over while it is
        # away.
        setns(descriptor, CLONE_NEWNET)
        try:
            yield own
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
