"""Shows each sandbox an id of its boot that is its own.

gVisor draws one when /proc is mounted, which is before an image is made: all that goes on from it would show
the same, and so that it stands on one machine. A file is mounted over it, another one for each sandbox. runsc
looks for the place in the root on this machine, where /proc is an empty folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cloche_server.isolation import overlay
from cloche_server.isolation.gvisor import covers

PLACE = "/proc/sys/kernel/random/boot_id"


def can_be_shown(layers: Sequence[Path]) -> bool:
    """Whether the root of these layers, uppermost first, has a folder /proc to mount over."""
    found = overlay.entry(layers, "proc")
    return found is not None and stat.S_ISDIR(found.st_mode)


def write(path: Path, boot_id: str, owner: int) -> None:
    """Make the file. Its time is always the same: who goes on from an image wants files as they were."""
    path.write_text(f"{boot_id}\n")
    # SAFETY: the sandbox's root, which sees it on a mount that cannot be written to.
    os.chown(path, owner, owner)
    path.chmod(0o444)
    os.utime(path, (0, 0))


def make_place(root: str) -> None:
    """Have the place in an assembled root, over which the sandbox's own /proc comes.

    Raises:
        OSError: There is no /proc, or it is a link.
    """
    parts = PLACE.split("/")[2:]
    with covers.opened(root, "proc") as folder, covers.covered(folder, nr_inodes="8", mode="555") as mount:
        for depth in range(1, len(parts)):
            os.mkdir("/".join(parts[:depth]), 0o555, dir_fd=mount)
        os.close(os.open("/".join(parts), os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=mount))
