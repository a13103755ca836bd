"""Watching a folder, and if asked all below it, for changes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections import deque
from typing import TYPE_CHECKING

from cloche_agent.credentials import acting_as
from cloche_agent.filesystem import inotify
from cloche_agent.filesystem.entries import describe
from cloche_agent.filesystem.inotify import Inotify, is_on_network
from cloche_agent.filesystem.paths import explained, shown
from cloche_wire.errors import InvalidArgument, ResourceExhausted
from cloche_wire.messages.filesystem import EventType, FilesystemEvent

if TYPE_CHECKING:
    from cloche_agent.users import User

log = logging.getLogger(__name__)

_MOST_EVENTS = 32_768
"""Events that wait for a reader; what comes on top is lost, as it is in the kernel's own queue."""

_MOST_READS = 32
"""For one taking: more than the kernel's queue holds, and yet an end where events come very fast."""

_TYPES = (
    (inotify.IN_CREATE | inotify.IN_MOVED_TO, EventType.EVENT_TYPE_CREATE),
    (inotify.IN_MOVED_FROM | inotify.IN_MOVE_SELF, EventType.EVENT_TYPE_RENAME),
    (inotify.IN_ATTRIB, EventType.EVENT_TYPE_CHMOD),
    (inotify.IN_MODIFY, EventType.EVENT_TYPE_WRITE),
    (inotify.IN_DELETE | inotify.IN_DELETE_SELF, EventType.EVENT_TYPE_REMOVE),
)
_WITH_ENTRY = frozenset({EventType.EVENT_TYPE_CREATE, EventType.EVENT_TYPE_WRITE, EventType.EVENT_TYPE_CHMOD})


class Watch:
    """A watched folder and the events that nobody has taken yet."""

    def __init__(self, root: str, user: User, *, recursive: bool, include_entry: bool, network: bool) -> None:
        """Begin to watch as `user`.

        Args:
            root: The folder.
            user: Whose right to read the folders counts; what it may not read below the root is not watched.
            recursive: Watch what lies below too, and what will be made there.
            include_entry: Tell what is there now with each event that leaves something there.
            network: Accept a folder that other machines may change, without events.

        Raises:
            PathNotFound, InvalidArgument, PermissionDenied, ResourceExhausted: It cannot be watched.
        """
        self._root = root
        self._user = user
        self._recursive = recursive
        self._include_entry = include_entry
        self._folders: dict[int, str] = {}
        self._moving: dict[int, str] = {}
        """Watched folders whose new name is not known yet, by the cookie of their rename."""
        self._events: deque[FilesystemEvent] = deque()
        self._arrived = asyncio.Event()
        with explained(root):
            self._inotify = Inotify()
        try:
            with explained(root), acting_as(user):
                self._begin(network=network)
        except BaseException:
            self._inotify.close()
            raise
        asyncio.get_running_loop().add_reader(self._inotify.descriptor, self._read)

    def take(self) -> list[FilesystemEvent]:
        """Events since the last call, up to this moment."""
        for _ in range(_MOST_READS):
            if not self._read():
                break
        taken = list(self._events)
        self._events.clear()
        self._arrived.clear()
        return taken

    async def wait(self, until: float | None) -> list[FilesystemEvent]:
        """At least one event.

        Raises:
            TimeoutError: None came until that time of the event loop.
        """
        async with asyncio.timeout_at(until):
            await self._arrived.wait()
        return self.take()

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._inotify.descriptor)
        self._inotify.close()

    def _begin(self, *, network: bool) -> None:
        if not os.path.isdir(self._root):  # noqa: PTH112
            os.lstat(self._root)
            raise InvalidArgument(f"path is not a directory: {shown(self._root)}")
        if not network and is_on_network(self._root):
            raise InvalidArgument(
                f"path is on a network file system: {shown(self._root)}", hint="set allow_network_mounts"
            )
        self._add("")
        if self._recursive:
            self._add_below("", report=False)

    def _path(self, relative: str) -> str:
        return f"{self._root.rstrip('/')}/{relative}" if relative else self._root

    def _add(self, relative: str) -> None:
        try:
            self._folders[self._inotify.add(self._path(relative))] = relative
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ResourceExhausted("limit of watched folders is reached") from error
            raise

    def _add_below(self, relative: str, *, report: bool) -> None:
        """Watch every folder below, links not followed; with `report`, what is there counts as created."""
        pending = [relative]
        while pending:
            folder = pending.pop()
            try:
                if folder != relative:
                    self._add(folder)
                with os.scandir(self._path(folder)) as entries:
                    found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            except OSError:
                continue  # gone again, or closed to this user
            for name, is_folder in found:
                below = f"{folder}/{name}" if folder else name
                if report:
                    self._report_found(below)
                if is_folder:
                    pending.append(below)

    def _report_found(self, name: str) -> None:
        """Tell of what was there before its folder was watched: made, and written to if it holds anything."""
        self._report(name, EventType.EVENT_TYPE_CREATE)
        with contextlib.suppress(OSError):
            found = os.lstat(self._path(name))
            if stat.S_ISREG(found.st_mode) and found.st_size:
                self._report(name, EventType.EVENT_TYPE_WRITE)

    def _read(self) -> bool:
        """Take in what the kernel has for us, as far as one call of it gives; False when there is nothing."""
        events = self._inotify.read()
        if not events:
            return False
        with acting_as(self._user):
            for event in events:
                self._take_in(event)
            # The kernel queues both halves of a rename one after the other. What has no second half by now
            # went to where nobody watches.
            for folder in self._moving.values():
                self._forget(folder)
            self._moving.clear()
        return True

    def _forget(self, folder: str) -> None:
        for watch, name in list(self._folders.items()):
            if name == folder or name.startswith(f"{folder}/"):
                del self._folders[watch]
                self._inotify.remove(watch)

    def _rename(self, old: str, new: str) -> None:
        for watch, name in self._folders.items():
            if name == old or name.startswith(f"{old}/"):
                self._folders[watch] = new + name[len(old) :]

    def _take_in(self, event: inotify.RawEvent) -> None:
        if event.mask & inotify.IN_Q_OVERFLOW:
            log.warning("file events were lost: %s", self._root)
            if self._recursive:
                self._add_below("", report=False)  # folders may have been made that nobody told us of
            return
        folder = self._folders.get(event.watch)
        if folder is None:
            return
        if event.mask & inotify.IN_IGNORED:
            del self._folders[event.watch]  # the kernel ended the watch: the folder is gone
            return
        if not event.name:
            # About the folder itself. One below the root was told of by its parent.
            if folder or event.mask & inotify.IN_ATTRIB:
                return
            name = "."
        else:
            name = f"{folder}/{event.name}" if folder else event.name
        for mask, kind in _TYPES:
            if event.mask & mask:
                self._report(name, kind)
        if self._recursive and event.mask & inotify.IN_ISDIR:
            self._follow_folder(event, name)

    def _follow_folder(self, event: inotify.RawEvent, name: str) -> None:
        if event.mask & inotify.IN_MOVED_FROM:
            self._moving[event.cookie] = name
        elif event.mask & inotify.IN_MOVED_TO and event.cookie in self._moving:
            self._rename(self._moving.pop(event.cookie), name)
        elif event.mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO):
            self._watch_new(name)

    def _watch_new(self, relative: str) -> None:
        try:
            self._add(relative)
        except OSError:
            return
        except ResourceExhausted:
            log.warning("limit of watched folders is reached: %s", self._root)
            return
        # Between the folder's making and this moment things may have come into it without an event.
        self._add_below(relative, report=True)

    def _report(self, name: str, kind: EventType) -> None:
        if len(self._events) >= _MOST_EVENTS:
            return
        entry = None
        if self._include_entry and kind in _WITH_ENTRY:
            try:
                entry = describe(self._path(name))
            except OSError:
                entry = None  # gone again
        self._events.append(FilesystemEvent(name=shown(name), type=kind, entry=entry))
        self._arrived.set()
