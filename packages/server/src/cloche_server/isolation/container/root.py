"""A sandbox's root, put together by the host's root in a mount namespace of one process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cloche_server.isolation import overlay, shared_mounts, syscalls
from cloche_server.isolation.mount_points import EMPTY, ROOT, RUNTIME


def assemble(
    folder: str, layers: Sequence[str], runtime_tree: str, ids: overlay.Ids, shared: dict[str, int]
) -> None:
    """Mount the layers, the writable one and the runtime tree in a namespace of this process alone.

    Shared mounts come last, into the writable layer, where nothing of the tenant has run yet.

    Options are relative to the working directory, so that the mount table shown inside names no path of the
    host. Leaves: the working directory is another one.

    Args:
        folder: Holds the writable layer.
        layers: What it lies over, uppermost first.
        runtime_tree: Shown at `RUNTIME`.
        ids: Of the sandbox.
        shared: Descriptors of detached mounts by the path that they are shown at; they are closed.

    Raises:
        BadPath: One of those is no path for a folder.
    """
    syscalls.enter_private_mounts()
    # An overlay of one folder (it wants two): the table would show the source of a bind mount.
    # SAFETY: /run/cloche and its folders are ours (driver's prepare checks it), and empty.
    os.chdir(runtime_tree)
    read_only = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("overlay", RUNTIME, "overlay", read_only, f"lowerdir=.:{EMPTY}")
    overlay.mount(layers, folder, ROOT, ids, syscalls.MS_NODEV)
    for path, mount in shared.items():
        shared_mounts.show(mount, ROOT, path, ids)
        os.close(mount)
