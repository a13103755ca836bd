"""Pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from typing import NamedTuple

_DEFAULT_COLS, _DEFAULT_ROWS = 80, 24
_LARGEST_SIZE = 0xFFFF


class Terminal(NamedTuple):
    """Both ends of a pseudo-terminal, as descriptors of ours."""

    ours: int
    theirs: int


def open_terminal(cols: int, rows: int, uid: int, gid: int) -> Terminal:
    """Make a terminal that belongs to the user `uid`.

    Raises:
        OSError: There is no pseudo-terminal left.
    """
    ours, theirs = os.openpty()
    try:
        os.set_blocking(ours, False)
        resize(ours, cols, rows)
        if os.geteuid() == 0:
            # SAFETY: by descriptor, so that no name in /dev can point it elsewhere. login(1) does the same.
            os.fchown(theirs, uid, gid)
            os.fchmod(theirs, 0o620)
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    return Terminal(ours, theirs)


def resize(terminal: int, cols: int, rows: int) -> None:
    """Tell the terminal, and by a signal the programs on it, its size in characters; 0 means 80 x 24."""
    cols = min(cols or _DEFAULT_COLS, _LARGEST_SIZE)
    rows = min(rows or _DEFAULT_ROWS, _LARGEST_SIZE)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
