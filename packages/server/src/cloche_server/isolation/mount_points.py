"""Where file systems of sandboxes are put together: the same places for each, in a namespace of its own.

Short, and reachable for every user id.
"""

from __future__ import annotations

import stat
from pathlib import Path

from cloche_wire.errors import Unavailable

_FOLDER = Path("/run/cloche")
ROOT, LAYERS, RUNTIME, EMPTY, SHARED = (
    str(_FOLDER / name) for name in ("root", "layers", "runtime", "empty", "shared")
)
NETWORK, NULL, BOOT_ID = (str(_FOLDER / name) for name in ("network", "null", "boot_id"))
"""Files."""


def shared_at(number: int) -> str:
    """Where a program that takes paths is shown the mount of that number, in a namespace of its own."""
    return f"{SHARED}/{number}"


def prepare() -> None:
    """Make them, once per start of the node.

    Raises:
        Unavailable: Something of somebody else's stands there.
    """
    for folder in (_FOLDER, *map(Path, (ROOT, LAYERS, RUNTIME, EMPTY, SHARED))):
        _make_own_folder(folder)
    for path in (NETWORK, NULL, BOOT_ID):
        Path(path).touch(mode=0o600)


def _make_own_folder(path: Path) -> None:
    """Make a folder that may be mounted over; refuse one that others own or can write to."""
    path.mkdir(mode=0o755, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        raise Unavailable(f"not a folder of ours: {path}", hint="move it away")
