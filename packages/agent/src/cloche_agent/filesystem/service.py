"""filesystem.Filesystem: the methods. Every touch of a file happens as the user of the call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from cloche_agent import users
from cloche_agent.credentials import acting_as
from cloche_agent.filesystem.entries import describe
from cloche_agent.filesystem.paths import explained, resolve, shown
from cloche_agent.filesystem.tree import list_tree, remove_tree
from cloche_agent.filesystem.watch import Watch
from cloche_agent.rpc import frame
from cloche_wire.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PathNotFound,
    ResourceExhausted,
)
from cloche_wire.messages import filesystem as wire

if TYPE_CHECKING:
    from cloche_agent.init import Sandbox
    from cloche_agent.rpc import Call, Frames, Router
    from cloche_agent.users import User

_MOST_WATCHERS = 100


class FilesystemService:
    """The methods, and the watchers that clients poll."""

    def __init__(self, sandbox: Sandbox) -> None:
        """Serve the files of `sandbox`, no watcher yet."""
        self._sandbox = sandbox
        self._watchers: dict[str, Watch] = {}

    def register(self, router: Router) -> None:
        """Serve all methods of the service on `router`."""
        router.unary(wire.STAT, wire.StatRequest, self.stat)
        router.unary(wire.MAKE_DIR, wire.MakeDirRequest, self.make_dir)
        router.unary(wire.MOVE, wire.MoveRequest, self.move)
        router.unary(wire.LIST_DIR, wire.ListDirRequest, self.list_dir)
        router.unary(wire.REMOVE, wire.RemoveRequest, self.remove)
        router.server_stream(wire.WATCH_DIR, wire.WatchDirRequest, self.watch_dir)
        router.unary(wire.CREATE_WATCHER, wire.CreateWatcherRequest, self.create_watcher)
        router.unary(wire.GET_WATCHER_EVENTS, wire.GetWatcherEventsRequest, self.get_watcher_events)
        router.unary(wire.REMOVE_WATCHER, wire.RemoveWatcherRequest, self.remove_watcher)

    async def stat(self, request: wire.StatRequest, call: Call) -> wire.StatResponse:
        """Tell about one entry."""
        path, user = self._target(request.path, call)
        return wire.StatResponse(_entry(path, user))

    async def make_dir(self, request: wire.MakeDirRequest, call: Call) -> wire.MakeDirResponse:
        """Make a folder with its parents."""
        path, user = self._target(request.path, call)
        with explained(path), acting_as(user):
            _make_folder(path)
        return wire.MakeDirResponse(_entry(path, user))

    async def move(self, request: wire.MoveRequest, call: Call) -> wire.MoveResponse:
        """Rename an entry, making the folders it goes to."""
        source, user = self._target(request.source, call)
        destination, _ = self._target(request.destination, call)
        with explained(source), acting_as(user):
            try:
                os.lstat(source)
            except FileNotFoundError as error:
                raise PathNotFound(f"source file not found: {shown(source)}") from error
        with explained(destination), acting_as(user):
            os.makedirs(os.path.dirname(destination), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120
            try:
                os.rename(source, destination)  # noqa: PTH104
            except PermissionError:
                raise
            except OSError as error:
                reason = (error.strerror or "").lower()
                raise Internal(f"cannot move to '{shown(destination)}': {reason}") from error
        return wire.MoveResponse(_entry(destination, user))

    async def list_dir(self, request: wire.ListDirRequest, call: Call) -> wire.ListDirResponse:
        """List a folder."""
        path, user = self._target(request.path, call)
        return wire.ListDirResponse(await list_tree(path, request.depth or 1, user))

    async def remove(self, request: wire.RemoveRequest, call: Call) -> wire.RemoveResponse:
        """Remove an entry and all below it."""
        path, user = self._target(request.path, call)
        await remove_tree(path, user)
        return wire.RemoveResponse()

    async def watch_dir(self, request: wire.WatchDirRequest, call: Call) -> Frames:
        """Stream the changes of a folder until the caller goes away."""
        watch = self._watch(request, call)
        now = asyncio.get_running_loop().time
        with contextlib.closing(watch):
            yield frame(wire.WatchDirResponse(start=wire.WatchStart()))
            while True:
                until = now() + call.keepalive_s
                try:
                    events = await watch.wait(until if call.deadline is None else min(until, call.deadline))
                except TimeoutError:
                    if call.deadline is not None and now() >= call.deadline:
                        raise DeadlineExceeded("deadline exceeded") from None
                    yield frame(wire.WatchDirResponse(keepalive=wire.KeepAlive()))
                    continue
                yield b"".join(frame(wire.WatchDirResponse(filesystem=event)) for event in events)

    async def create_watcher(
        self, request: wire.CreateWatcherRequest, call: Call
    ) -> wire.CreateWatcherResponse:
        """Begin to watch for a caller that will ask for the events."""
        if len(self._watchers) >= _MOST_WATCHERS:
            raise ResourceExhausted(f"more than {_MOST_WATCHERS} watchers", hint="remove some")
        watcher_id = "w" + secrets.token_hex(10)
        self._watchers[watcher_id] = self._watch(request, call)
        return wire.CreateWatcherResponse(watcher_id)

    async def get_watcher_events(
        self, request: wire.GetWatcherEventsRequest, _call: Call
    ) -> wire.GetWatcherEventsResponse:
        """Events of a watcher since the last call."""
        return wire.GetWatcherEventsResponse(self._watcher(request.watcher_id).take())

    async def remove_watcher(
        self, request: wire.RemoveWatcherRequest, _call: Call
    ) -> wire.RemoveWatcherResponse:
        """Stop a watcher."""
        self._watcher(request.watcher_id).close()
        del self._watchers[request.watcher_id]
        return wire.RemoveWatcherResponse()

    # ---

    def _target(self, path: str, call: Call) -> tuple[str, User]:
        user = users.lookup(call.user or self._sandbox.default_user)
        return resolve(path, user, self._sandbox.default_workdir), user

    def _watcher(self, watcher_id: str) -> Watch:
        watch = self._watchers.get(watcher_id)
        if watch is None:
            raise NotFound(f"watcher with id {watcher_id} not found")
        return watch

    def _watch(self, request: wire.WatchDirRequest | wire.CreateWatcherRequest, call: Call) -> Watch:
        path, user = self._target(request.path, call)
        return Watch(
            path,
            user,
            recursive=request.recursive,
            include_entry=request.include_entry,
            network=request.allow_network_mounts,
        )


def _entry(path: str, user: User) -> wire.EntryInfo:
    with explained(path), acting_as(user):
        return describe(path)


def _make_folder(path: str) -> None:
    if os.path.isdir(path):  # noqa: PTH112
        raise AlreadyExists(f"directory already exists: {shown(path)}")
    if os.path.lexists(path):
        raise InvalidArgument(f"path already exists but it is not a directory: {shown(path)}")
    os.makedirs(path, mode=0o755)  # noqa: PTH103
