"""How much disk a sandbox's own folder takes, found at a bounded cost.

The tree belongs to a tenant: it may be of any width and depth, and may change while it is read.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MAX_DEPTH = 64
"""Folders deeper than this are not counted: each level holds a descriptor of ours."""
_BLOCK_BYTES = 512
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Never through a link."""


class LayerSize(NamedTuple):
    """What was found, and what finding it took."""

    size_bytes: int
    entries: int
    is_whole: bool
    """False: there was more than could be looked at, so the size is a lower bound."""


def measure(folder: Path, *, max_entries: int) -> LayerSize:
    """Add up the blocks of everything below `folder`; a folder that is gone counts as empty."""
    size_bytes = entries = 0
    is_whole = True
    stack: list[tuple[int, list[str]]] = []
    try:
        with suppress(OSError):
            stack.append((os.open(folder, OPEN_FOLDER), ["."]))
        while stack:
            descriptor, names = stack[-1]
            if not names:
                os.close(stack.pop()[0])
                continue
            name = names.pop()
            if entries >= max_entries or len(stack) > MAX_DEPTH:
                is_whole = False
                names.clear()
                continue
            # SAFETY: every step goes from an open folder to one name in it, and no link is followed: whatever
            # the tenant puts into the place of a folder meanwhile, nothing outside is looked at.
            with suppress(OSError):
                child = os.open(name, OPEN_FOLDER, dir_fd=descriptor)
                stack.append((child, []))
                found, folders, is_cut = _read(child, max_entries - entries)
                size_bytes += found.size_bytes
                entries += found.entries
                is_whole = is_whole and not is_cut
                stack[-1] = (child, folders)
        return LayerSize(size_bytes, entries, is_whole)
    finally:
        for descriptor, _ in stack:
            os.close(descriptor)


class _Found(NamedTuple):
    size_bytes: int
    entries: int


def _read(descriptor: int, max_entries: int) -> tuple[_Found, list[str], bool]:
    """One folder: its size with its files, its folders' names, whether it was cut short."""
    size_bytes = os.fstat(descriptor).st_blocks * _BLOCK_BYTES
    count = 0
    folders: list[str] = []
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if count >= max_entries:
                return _Found(size_bytes, count), folders, True
            count += 1
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
                else:
                    size_bytes += status.st_blocks * _BLOCK_BYTES
    return _Found(size_bytes, count), folders, False
