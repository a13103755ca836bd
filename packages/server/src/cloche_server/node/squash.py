"""Make one layer of several, as the kernel shows them over each other, without copying what is in the files.

What hides files of layers below is kept where there is something to hide, and nowhere else: in a folder that
lies over none the kernel would list it as a file. See: overlayfs documentation, "whiteouts and opaque
directories".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from cloche_server.node import trees

_OPAQUE, _IS_OPAQUE = "trusted.overlay.opaque", b"y"


class _Seen(NamedTuple):
    """What of a name is seen through some layers."""

    folder: int
    """Of the uppermost that has it."""
    status: os.stat_result
    merged: list[int]
    """Where it is a folder: those that are shown as one, uppermost first."""
    is_closed: bool
    """Whether nothing of it is seen in what lies below."""


def squash(layers: Sequence[Path], below: Sequence[Path], target: Path) -> None:
    """Make `target` a layer that shows what `layers` show over those `below`, not synced.

    Requires: all stand still for ever, on one file system.
    Leaves: on an error perhaps a part of `target`.

    Raises:
        TooLarge: It is wider or deeper than a tree may be.
        OSError: The disk is full or broken.
    """
    target.mkdir(mode=0o700)
    with ExitStack() as stack:
        own = [stack.enter_context(trees.opened(path)) for path in layers]
        others = [stack.enter_context(trees.opened(path)) for path in below]
        top = stack.enter_context(trees.opened(target))
        _Squash().merge(own, others, top, depth=1)
        _finish(own[0], top, is_closed=False)


class _Squash:
    def __init__(self) -> None:
        self._left = trees.MOST_ENTRIES

    def merge(self, layers: list[int], below: list[int], target: int, *, depth: int) -> None:
        """Fill a folder that is made of these; none of them hides what is in the next."""
        trees.require_depth(depth)
        found = sorted({name for folder in layers for name in trees.names(folder, self._left)})
        self._left -= len(found)
        for name in found:
            with ExitStack() as stack:
                seen = _look(name, layers, stack)
                assert seen is not None
                if stat.S_ISDIR(seen.status.st_mode):
                    under = None if seen.is_closed else _look(name, below, stack)
                    self._add_folder(name, seen, under, target, depth)
                elif not _hides(seen.status) or _is_there(name, below):
                    trees.link(trees.Entry(seen.folder, name, seen.status, depth), target)

    def _add_folder(self, name: str, seen: _Seen, under: _Seen | None, target: int, depth: int) -> None:
        os.mkdir(name, 0o700, dir_fd=target)
        with trees.opened(name, target) as folder:
            self.merge(seen.merged, under.merged if under else [], folder, depth=depth + 1)
            _finish(seen.merged[0], folder, is_closed=seen.is_closed)


def _look(name: str, layers: list[int], stack: ExitStack) -> _Seen | None:
    """What of a name these layers show; None where none has it."""
    top: tuple[int, os.stat_result] | None = None
    merged: list[int] = []
    for layer in layers:
        try:
            status = os.stat(name, dir_fd=layer, follow_symlinks=False)
        except FileNotFoundError:
            continue
        top = top or (layer, status)
        if not stat.S_ISDIR(status.st_mode):
            return _Seen(*top, merged, is_closed=True)
        folder = stack.enter_context(trees.opened(name, layer))
        merged.append(folder)
        if _is_opaque(folder):
            return _Seen(*top, merged, is_closed=True)
    return None if top is None else _Seen(*top, merged, is_closed=False)


def _is_there(name: str, layers: list[int]) -> bool:
    """Whether these show something of that name."""
    with ExitStack() as stack:
        seen = _look(name, layers, stack)
        return seen is not None and not _hides(seen.status)


def _hides(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(folder: int) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == _IS_OPAQUE
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return False


def _finish(source: int, folder: int, *, is_closed: bool) -> None:
    """Give a folder that is filled the owner, mode, attributes and times of the uppermost."""
    status = os.fstat(source)
    trees.take_over(f"/proc/self/fd/{source}", f"/proc/self/fd/{folder}", status, follow=True)
    if is_closed:
        os.setxattr(folder, _OPAQUE, _IS_OPAQUE)
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))
