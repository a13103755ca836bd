"""A sandbox's root, put together by the host's root in a mount namespace of one process."""

from __future__ import annotations

import os

from cloche_server.isolation import syscalls
from cloche_server.isolation.container import shared_mounts
from cloche_server.isolation.mount_points import EMPTY, LOWER, ROOT, RUNTIME


def assemble(
    folder: str, rootfs: str, runtime_tree: str, user_namespace: int, first_id: int, shared: dict[str, int]
) -> None:
    """Mount the template, the writable layer and the runtime tree in a namespace of this process alone.

    Shared mounts come last, into the writable layer, where nothing of the tenant has run yet.

    Options are relative to the working directory, so that the mount table shown inside names no path of the
    host. Leaves: the working directory is the sandbox's folder.

    Args:
        folder: Holds `upper` and `work`.
        rootfs: The template.
        runtime_tree: Shown at `RUNTIME`.
        user_namespace: Descriptor; of the sandbox.
        first_id: Host id of the sandbox's root.
        shared: Descriptors of detached mounts by the path that they are shown at; they are closed.

    Raises:
        BadPath: One of those is no path for a folder.
    """
    syscalls.enter_private_mounts()
    # SAFETY: /run/cloche and these folders are ours (driver's prepare checks it), and empty.
    syscalls.mount_idmapped(rootfs, LOWER, user_namespace)
    # An overlay of one folder (it wants two): the table would show the source of a bind mount.
    os.chdir(runtime_tree)
    read_only = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("overlay", RUNTIME, "overlay", read_only, f"lowerdir=.:{EMPTY}")
    os.chdir(folder)
    # Nothing of it outlives this machine, so nothing has to reach a disk. Without `volatile` the end of a
    # sandbox writes out all that is dirty on the file system of all of them, and a tenant's `fsync` does too.
    options = (
        f"lowerdir={LOWER},upperdir=upper,workdir=work,volatile,redirect_dir=nofollow,index=off,metacopy=off"
    )
    syscalls.mount("overlay", ROOT, "overlay", syscalls.MS_NODEV, options)
    for path, mount in shared.items():
        shared_mounts.show(mount, ROOT, path, user_namespace, first_id)
        os.close(mount)
