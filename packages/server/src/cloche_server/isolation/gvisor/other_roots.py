"""Over which roots an image goes on that was saved over another.

What the kernel in it keeps of its root's files are the folders that something is mounted at, by their names:
all else it forgets when it is saved, also that a name was missing. It neither looks for these folders'
content nor compares it. So where they are there, it finds the new root as if it had been started over it.

See: gvisor, pkg/sentry/fsimpl/gofer/save_restore.go, `PrepareSave` and `CompleteRestore`.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from cloche_server.isolation import overlay

_THERE = ("proc", "tmp")
"""Without the first there is no place for the id of a boot, and without the second runsc would have mounted
memory there at the start."""
_IN_NO_WAY = ("dev", "sys", ".cloche")
"""Made where they are missing. What else has such a name may be followed at a start."""


def can_be_taken(layers: Sequence[Path]) -> bool:
    """Whether the root of these layers, uppermost first, is such a one."""
    found = {name: overlay.entry(layers, name) for name in (*_THERE, *_IN_NO_WAY)}
    are_folders = all(status is None or stat.S_ISDIR(status.st_mode) for status in found.values())
    return are_folders and all(found[name] is not None for name in _THERE)
