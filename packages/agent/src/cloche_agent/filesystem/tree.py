"""Work on whole trees, cut into short steps so that one large tree does not keep the agent from others."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from typing import TYPE_CHECKING, Protocol

from cloche_agent.credentials import acting_as
from cloche_agent.filesystem.entries import describe
from cloche_agent.filesystem.paths import explained, shown
from cloche_wire.errors import InvalidArgument, ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloche_agent.users import User
    from cloche_wire.messages.filesystem import EntryInfo

_STEP_S = 0.005
_MOST_ENTRIES = 200_000


class _Remover(Protocol):
    def __call__(self, path: str, /, *, dir_fd: int | None = None) -> None: ...


_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


async def list_tree(path: str, depth: int, user: User) -> list[EntryInfo]:
    """Entries below the folder `path`, depth first in order of their names; links are not followed below it.

    Raises:
        PathNotFound, PermissionDenied: Of `path` itself; below it, what `user` may not read is left out.
        InvalidArgument: It is no folder.
        ResourceExhausted: There are too many entries for one answer.
    """
    found: list[EntryInfo] = []
    await _run(_list(path, depth, found), path, user)
    return found


async def remove_tree(path: str, user: User) -> None:
    """Remove `path` and all below it; nothing there is no error.

    Raises:
        PermissionDenied, InvalidArgument, Conflict: Something is left that `user` may not remove.
    """
    await _run(_remove(path), path, user)


async def _run(steps: Iterator[None], path: str, user: User) -> None:
    """Run to the end as `user`, in slices of a few milliseconds."""
    while True:
        with explained(path), acting_as(user):
            until = time.monotonic() + _STEP_S
            for _ in steps:
                if time.monotonic() > until:
                    break
            else:
                return
        await asyncio.sleep(0)


def _list(path: str, depth: int, found: list[EntryInfo]) -> Iterator[None]:
    if not stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116
        raise InvalidArgument(f"path is not a directory: {shown(path)}")
    # A stack, as trees may be deeper than Python's own; names reversed, so that the first comes off first.
    pending = [(f"{path.rstrip('/')}/{name}", 1) for name in sorted(os.listdir(path), reverse=True)]  # noqa: PTH208
    while pending:
        here, level = pending.pop()
        try:
            entry = describe(here)
            found.append(entry)
            if level < depth and entry.permissions[:1] == "d":
                names = sorted(os.listdir(here), reverse=True)  # noqa: PTH208
                pending.extend((f"{here}/{name}", level + 1) for name in names)
        except OSError:
            pass  # gone since, or closed to this user
        if len(found) > _MOST_ENTRIES:
            raise ResourceExhausted(f"more than {_MOST_ENTRIES} entries", hint="ask for less depth")
        yield


def _remove(path: str) -> Iterator[None]:
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(found.st_mode):
        _unless_gone(os.unlink, path)
        return
    parent = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
    try:
        yield from _remove_folder(parent, os.path.basename(path))  # noqa: PTH119
    finally:
        os.close(parent)


def _remove_folder(parent: int, name: str) -> Iterator[None]:
    """Empty and remove one folder.

    By descriptors of folders that were opened without following links: a folder that is swapped for a link in
    the middle of it leads nowhere else.
    """
    try:
        folder = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _remove_folder(folder, entry.name)
                else:
                    _unless_gone(os.unlink, entry.name, dir_fd=folder)
                yield
    finally:
        os.close(folder)
    _unless_gone(os.rmdir, name, dir_fd=parent)


def _unless_gone(remove: _Remover, name: str, *, dir_fd: int | None = None) -> None:
    try:
        remove(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
