"""File systems in files: a hard limit of bytes and inodes that needs nothing of the host's file system.

An image is a sparse file with an ext4 of our own making; nobody but the kernel ever writes to it, through a
loop device. The device clears itself with its last user, and the mounts are descriptors that stand nowhere:
whatever process is killed, the kernel unmounts and detaches, and there is nothing to clean up.

Two loop devices over one file would be two caches of one file system, and would destroy it. So a file that
has a device already gets no second one: the devices are searched by device and inode of their file.

See: loop(4), linux/loop.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
from pathlib import Path

import structlog

from cloche_server.isolation import syscalls
from cloche_wire.errors import Internal, Unavailable

log = structlog.get_logger()

_CONTROL = "/dev/loop-control"
_GET_FREE, _CONFIGURE, _GET_STATUS = 0x4C82, 0x4C0A, 0x4C05
_AUTOCLEAR, _DIRECT_IO = 4, 16
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
"""`struct loop_info64`: device, inode, rdevice, offset, sizelimit; number, -, -, flags; names."""
_ATTEMPTS = 64
_MKFS_TIMEOUT_S = 120
_OPTIONS: dict[str, str | None] = {
    # The file is new and sparse: its inode tables are zero already, and stay holes.
    "noinit_itable": None,
    "errors": "remount-ro",
}
_GIVES_BACK: dict[str, str | None] = {"discard": None}
"""What is deleted inside is given back to the host's disk; not where the space is to be kept."""


def make(path: Path, size_bytes: int, inodes: int, *, preallocate: bool) -> None:
    """Make a new image; its root belongs to id 0.

    Args:
        path: The file, which must not exist.
        size_bytes: Size of the file system with its own tables; what files get is some percent less.
        inodes: Files, folders and links it can hold, its own few included.
        preallocate: Take the space from the host's disk now, instead of when it is written to.

    Raises:
        OSError: The disk is full or broken.
        Unavailable: mkfs.ext4 is not installed.
        Internal: mkfs.ext4 refused.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
        if preallocate:
            os.posix_fallocate(descriptor, 0, size_bytes)
    finally:
        os.close(descriptor)
    options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"
    argv = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-N", str(inodes), "-E", options, str(path)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_MKFS_TIMEOUT_S, check=False,
            env={"PATH": os.defpath + ":/usr/sbin:/sbin"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Unavailable("mkfs.ext4 is not installed", hint="apt-get install e2fsprogs") from error
    if done.returncode != 0:
        # Not passed on: it names a path of the host.
        log.error("volume.mkfs_failed", status=done.returncode, reason=done.stderr.strip()[-300:])
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise Internal("mkfs.ext4 failed", hint="the node's log has its words")


def mount(path: Path) -> int:
    """Return a descriptor of a mount of the image that stands nowhere, without devices and setuid programs.

    Every call makes a mount of its own of the one file system. Blocks for some milliseconds when it is the
    first.

    Raises:
        OSError: No such image, or it cannot be mounted.
        Unavailable: This machine has no loop devices.
    """
    device = _attached(path)
    if device is None:
        device = _attach(path)
    try:
        # SAFETY: by descriptor, which also keeps the device from clearing itself before the mount holds it.
        return syscalls.mount_file_system(
            "ext4",
            f"/proc/self/fd/{device}",
            _OPTIONS if _is_preallocated(path) else _OPTIONS | _GIVES_BACK,
            syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV,
        )
    finally:
        os.close(device)


def _is_preallocated(path: Path) -> bool:
    status = path.stat()
    return status.st_blocks * 512 >= status.st_size


def _attached(path: Path) -> int | None:
    """The device that has this very file, opened; None when there is none."""
    status = path.stat()
    wanted = (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it is clearing itself at this moment
            # By the name of the image's folder first, so that devices of others are not held open.
            if path.parent.name not in entry.read_text():
                continue
            device = os.open(f"/dev/{entry.parent.parent.name}", os.O_RDWR | os.O_CLOEXEC)
            if _backing(device) == wanted:
                return device
            os.close(device)
    return None


def _backing(device: int) -> tuple[int, int, int] | None:
    info = bytearray(_INFO.size)
    try:
        fcntl.ioctl(device, _GET_STATUS, info)
    except OSError:
        return None
    number, inode = _INFO.unpack(info)[:2]
    # huge_encode_dev (linux/kdev_t.h): 12 bits of major, 20 of minor.
    return ((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00), inode)


def _attach(path: Path) -> int:
    """A free device with this file in it, opened; it clears itself when nobody holds it any more."""
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(
            f"no loop devices: {_CONTROL}: {error.strerror}",
            hint='modprobe loop; or set volumes.quota = "none" in config.toml for volumes without a limit',
        ) from error
    image = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for _ in range(_ATTEMPTS):
            name = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            try:
                device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError as error:
                hint = "a container needs the machine's /dev for them"
                raise Unavailable(f"no device node: {name}", hint=hint) from error
            try:
                _configure(device, image, path.parent.name)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was faster with this one
                    raise
            else:
                return device
    finally:
        os.close(image)
        os.close(control)
    raise Unavailable("no loop device is free")


def _configure(device: int, image: int, name: str) -> None:
    # Direct I/O: the image's pages are not kept twice, and writing is 7 times as fast (ADR 0008). Where the
    # host's file system has none, the kernel refuses or falls back.
    for flags, block_size in ((_AUTOCLEAR | _DIRECT_IO, 4096), (_AUTOCLEAR, 0)):
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name.encode()[:63], b"", b"", 0, 0)
        try:
            fcntl.ioctl(device, _CONFIGURE, struct.pack("=2I", image, block_size) + info + bytes(64))
        except OSError as error:
            if error.errno != errno.EINVAL or not flags & _DIRECT_IO:
                raise
        else:
            return
