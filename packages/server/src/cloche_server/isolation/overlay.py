"""A sandbox's files: layers that many share, and one that it writes to, seen as one root.

On disk every layer has the ids of the inside, 0 to 65,535, also the one that is written to: each is mounted
with its ids shifted to those of the sandbox. So what one sandbox has written can be a layer of another, whose
ids are others, and no file changes its owner for it; and who comes out of a sandbox owns no file on disk.

See: overlayfs documentation, "Layers" and "Volatile mount"; mount_setattr(2), "ID-mapped mounts".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cloche_server.isolation import syscalls
from cloche_server.isolation.mount_points import LAYERS

MOST_LAYERS = 100
"""In one root. The kernel takes 500; the options of a mount are a page, and each layer is 40 µs."""
UPPER, WORK = "upper", "work"
"""Folders of a sandbox's own folder: what it has written, as a layer is, and what the kernel needs for it."""
_WRITABLE = "own"
_OPTIONS = "redirect_dir=nofollow,index=off,metacopy=off"
"""No file of a layer points to another: it means the same over any other layers."""


class Ids(NamedTuple):
    """Whose a sandbox's files are."""

    user_namespace: int
    """Descriptor; maps 0 to 65,535."""
    first_id: int
    """Host id of its 0."""


def entry(layers: Sequence[Path], name: str) -> os.stat_result | None:
    """What a root of these layers, uppermost first, has of that name in its topmost folder; None: nothing."""
    for layer in layers:
        try:
            status = (layer / name).lstat()
        except FileNotFoundError:
            continue
        is_hidden = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        return None if is_hidden else status
    return None


def make_writable(folder: Path) -> Path:
    """Make the empty layer of a sandbox that is to be; return it."""
    for name in (UPPER, WORK):
        (folder / name).mkdir(mode=0o755)
    # Whatever the mask of files is; it is the sandbox's `/`.
    (folder / UPPER).chmod(0o755)
    return folder / UPPER


def mount(layers: Sequence[str], folder: str | None, target: str, ids: Ids, flags: int) -> None:
    """Show layers at `target` as one root, uppermost first; read-only where there is no `folder`.

    Options name no path of the host, since the table of mounts is shown inside. Leaves: the working directory
    is another one.

    Requires: a mount namespace of this process alone. Folders are ours, and no program of the sandbox runs.

    Args:
        layers: Folders; never written to. At least one.
        folder: Holds `UPPER` and `WORK`, which `make_writable` made.
        target: A folder of ours.
        ids: The sandbox's.
        flags: MS_* of the root.

    Raises:
        OSError: The kernel refuses; the message names the step.
    """
    # SAFETY: /run/cloche and these folders are ours (`mount_points.prepare`), and empty.
    syscalls.mount("tmpfs", LAYERS, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
    names = [str(number) for number in range(len(layers))]
    for name, layer in zip(names, layers, strict=True):
        _attach(layer, f"{LAYERS}/{name}", ids, syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV)
    os.chdir(LAYERS)
    if folder is None:
        if len(names) == 1:  # it wants two
            Path("none").mkdir(mode=0o700)
            names.append("none")
        syscalls.mount(
            "overlay", target, "overlay", flags | syscalls.MS_RDONLY, f"lowerdir={':'.join(names)},{_OPTIONS}"
        )
        return
    _attach(folder, f"{LAYERS}/{_WRITABLE}", ids, syscalls.MOUNT_ATTR_NODEV)
    # Nothing of it outlives this machine, so nothing has to reach a disk. Without `volatile` the end of a
    # sandbox writes out all that is dirty on the file system of all of them, and a tenant's `fsync` does too.
    options = f"lowerdir={':'.join(names)},upperdir={_WRITABLE}/{UPPER},workdir={_WRITABLE}/{WORK},volatile"
    with acting_as(ids):
        syscalls.mount("overlay", target, "overlay", flags, f"{options},{_OPTIONS}")


@contextmanager
def acting_as(ids: Ids) -> Generator[None, None, None]:
    """Make files as the sandbox's root in this block, with every right of the caller's.

    The overlay keeps these credentials, for what it writes by itself: the host's root has no id in a mount
    whose ids are shifted, and the kernel has nobody make a file whose owner cannot be written down.
    """
    with syscalls.kept_capabilities():
        # SAFETY: of this process, for one block; it was root before, and is again after it.
        syscalls.set_file_ids(ids.first_id)
        try:
            yield
        finally:
            syscalls.set_file_ids(0)


def _attach(source: str, target: str, ids: Ids, attributes: int) -> None:
    Path(target).mkdir(mode=0o700)
    syscalls.mount_idmapped(source, target, ids.user_namespace, attributes)
