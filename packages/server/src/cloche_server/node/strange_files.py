"""Files in folders that other users write to, opened without following where they lead."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from cloche_server.isolation import syscalls
from cloche_wire.errors import PathNotFound


def open_file(folder: Path, name: str) -> int:
    """Open a regular file below a folder for reading.

    Args:
        folder: Reached by a path that nobody else can write to.
        name: Of the file, below it.

    Raises:
        PathNotFound: There is none, the name leads elsewhere, or it is no regular file.
    """
    above = file = -1
    try:
        above = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # SAFETY: another user may write to the folder: no link is followed, and nothing outside is reached.
        path = str(PurePosixPath(name)).encode()
        file = syscalls.openat2(
            above, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, syscalls.RESOLVE_PLAIN
        )
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        raise PathNotFound(f"no regular file: {name[:200]}")
    except (OSError, ValueError) as error:
        raise PathNotFound(f"no such file: {name[:200]}") from error
    finally:
        if above >= 0:
            os.close(above)


def read_text(folder: Path, name: str, most_bytes: int) -> str:
    """Read such a file; what is no UTF-8 in it is shown as such.

    Raises:
        PathNotFound: As `open_file`, or it is larger than `most_bytes`.
    """
    with os.fdopen(open_file(folder, name), "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise PathNotFound(f"a file of more than {most_bytes} bytes: {name[:200]}")
    return content.decode(errors="replace")
