"""The mounts that belong to a sandbox's own namespaces, and the change of root into it.

Runs as the sandbox's pid 1, before any program of the tenant: a template decides what lies at a mount point,
so each is reached from a descriptor, without links, and never by a path.

See: opencontainers/runtime-spec, config-linux.md "Default Devices" and "Default Filesystems".
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator
from typing import NamedTuple

from cloche_server.isolation import posture, syscalls
from cloche_server.isolation.mount_points import ROOT, RUNTIME

_STAY = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_NOSUID, _NOEXEC = syscalls.MOUNT_ATTR_NOSUID, syscalls.MOUNT_ATTR_NOEXEC
_NODEV, _READ_ONLY = syscalls.MOUNT_ATTR_NODEV, syscalls.MOUNT_ATTR_RDONLY
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
}  # fmt: skip

_RANDOM_ID, _BOOT_ID, _ID_BYTES = b"proc/sys/kernel/random/uuid", "boot_id", 64


class _Mount(NamedTuple):
    point: str
    kind: str
    attributes: int
    options: dict[str, str | None]


_PROC = _Mount("proc", "proc", _NOSUID | _NOEXEC | _NODEV, {})
_MOUNTS = (
    _Mount("dev", "tmpfs", _NOSUID | _NOEXEC, {"mode": "755", "size": "64k", "nr_inodes": "64"}),
    _Mount(
        "dev/pts",
        "devpts",
        _NOSUID | _NOEXEC,
        {"newinstance": None, "ptmxmode": "0666", "mode": "0620", "gid": "5", "max": "256"},
    ),
    _Mount("dev/shm", "tmpfs", _NOSUID | _NODEV, {"mode": "1777", "size": "262144k", "nr_inodes": "65536"}),
)


def enter_root(*, has_processes: bool) -> None:
    """Finish the root that was assembled at `ROOT` and go into it; nothing of the host's is in sight then.

    Without `has_processes` it has no /proc: one would show the processes of the host.

    Requires: the first process of new mount and, with /proc, pid namespaces, with every capability in the
    user namespace that owns them, and ids of its own there.

    Raises:
        OSError: A mount point is a link, or the kernel refuses; the message names it.
    """
    # The copy of the host's table that came with the namespace is locked; a copy of the root is not, and
    # only that can become one (mount_namespaces(7), "Restrictions on mount namespaces").
    tree = syscalls.clone_mount(ROOT, recursive=True)
    with _opened(ROOT) as point:
        syscalls.attach_mount(tree, point)
    os.close(tree)
    with _opened(ROOT) as root:
        for mount in (*((_PROC,) if has_processes else ()), *_MOUNTS):
            _attach_new(root, mount)
        _make_devices(root)
        with _folder(root, ".cloche") as point:
            _move(syscalls.clone_mount(RUNTIME), point)
        if has_processes:
            for path in posture.MASKED_PATHS:
                _mask(root, path.lstrip("/"))
            for path in posture.READONLY_PATHS:
                _make_read_only(root, path.lstrip("/"))
            _show_own_boot_id(root)
        syscalls.change_root(root)


def _attach_new(root: int, new: _Mount) -> None:
    with _folder(root, new.point) as point:
        # SAFETY: a file system of this sandbox's own namespaces, with every attribute set before it is seen.
        _move(syscalls.mount_file_system(new.kind, new.kind, new.options, new.attributes), point)


def _make_devices(root: int) -> None:
    with _opened("dev", root) as folder:
        for name in _DEVICES:
            point = os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
            try:
                # SAFETY: the host's own harmless devices: their owner is nobody of the sandbox, who so can
                # neither chmod nor chown them.
                _move(syscalls.clone_mount(f"/dev/{name}"), point)
            finally:
                os.close(point)
        for name, target in _LINKS.items():
            os.symlink(target, name, dir_fd=folder)


def _mask(root: int, path: str) -> None:
    try:
        point = syscalls.openat2(root, path.encode(), os.O_PATH, _STAY)
    except FileNotFoundError:
        return  # this kernel has none
    try:
        if stat.S_ISDIR(os.fstat(point).st_mode):
            attributes = _READ_ONLY | _NOSUID | _NODEV | _NOEXEC
            _move(syscalls.mount_file_system("tmpfs", "tmpfs", {"nr_inodes": "2"}, attributes), point)
        else:
            _move(syscalls.clone_mount("/dev/null"), point)
    finally:
        os.close(point)


def _make_read_only(root: int, path: str) -> None:
    mount = syscalls.clone_mount(path, root)
    syscalls.add_attributes(mount, _READ_ONLY)
    with _opened(path, root) as point:
        _move(mount, point)


def _show_own_boot_id(root: int) -> None:
    """Cover the id of the host's boot with a new one, as every start of a machine has.

    By the host's, which no namespace separates, sandboxes could tell that they stand on one machine.
    """
    with _opened("dev", root) as folder:
        new = syscalls.openat2(root, _RANDOM_ID, os.O_RDONLY | os.O_CLOEXEC, _STAY)
        file = os.open(_BOOT_ID, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=folder)
        try:
            os.write(file, os.read(new, _ID_BYTES))
        finally:
            os.close(new)
            os.close(file)
        point = syscalls.openat2(root, f"proc/sys/kernel/random/{_BOOT_ID}".encode(), os.O_PATH, _STAY)
        try:
            mount = syscalls.clone_mount(_BOOT_ID, folder)
            # SAFETY: a file without a name, of a file system of this sandbox; set read-only before it is
            # seen, so that not even root inside changes it.
            syscalls.add_attributes(mount, _READ_ONLY | _NOSUID | _NODEV | _NOEXEC)
            _move(mount, point)
        finally:
            os.close(point)
            os.unlink(_BOOT_ID, dir_fd=folder)


def _move(mount: int, point: int) -> None:
    try:
        syscalls.attach_mount(mount, point)
    finally:
        os.close(mount)


@contextlib.contextmanager
def _opened(path: str, folder: int | None = None) -> Generator[int]:
    descriptor = (
        os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if folder is None
        else syscalls.openat2(folder, path.encode(), os.O_PATH | os.O_DIRECTORY, _STAY)
    )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _folder(root: int, path: str) -> Generator[int]:
    """A mount point, made where the template has none."""
    above, _, name = path.rpartition("/")
    with _opened(above or ".", root) as folder:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
        with _opened(name, folder) as point:
            yield point
