"""Files of a sandbox: read, write, look, change, watch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import IO, Literal, TypeAlias, TypedDict, overload

import httpx

from cloche import _requests
from cloche._async.client import Session
from cloche.errors import AlreadyExists, ClocheError, Conflict, InvalidArgument, NotFound, PathNotFound
from cloche.models import EntryInfo, FilesystemEvent, FilesystemEventType, FileType, WriteInfo
from cloche_wire.messages import filesystem
from cloche_wire.messages.filesystem import EventType

WriteData: TypeAlias = str | bytes | bytearray | IO[bytes] | IO[str] | Iterable[bytes]

_CHUNK_BYTES = 1024 * 1024
_EVENT_TYPES = {
    EventType.EVENT_TYPE_CREATE: FilesystemEventType.CREATE,
    EventType.EVENT_TYPE_WRITE: FilesystemEventType.WRITE,
    EventType.EVENT_TYPE_REMOVE: FilesystemEventType.REMOVE,
    EventType.EVENT_TYPE_RENAME: FilesystemEventType.RENAME,
    EventType.EVENT_TYPE_CHMOD: FilesystemEventType.CHMOD,
}


class WriteEntry(TypedDict):
    """One file to write: where, and what."""

    path: str
    data: WriteData


class WatchHandle:
    """A watch whose events are gathered in the sandbox until they are fetched."""

    def __init__(self, session: Session, watcher_id: str) -> None:
        """Fetch the events of this watcher."""
        self._session = session
        self._watcher_id = watcher_id

    async def get_new_events(self, request_timeout: float | None = None) -> list[FilesystemEvent]:
        """Return the changes since the last call.

        Raises:
            NotFound: The watch was stopped.
        """
        answer = await self._session.call(
            filesystem.GET_WATCHER_EVENTS,
            filesystem.GetWatcherEventsRequest(self._watcher_id),
            filesystem.GetWatcherEventsResponse,
            request_timeout=request_timeout,
        )
        events: list[FilesystemEvent] = []
        for event in answer.events:
            if event.type in _EVENT_TYPES:
                entry = None if event.entry is None else _requests.read_entry(event.entry)
                events.append(FilesystemEvent(event.name, _EVENT_TYPES[EventType(event.type)], entry))
        return events

    async def stop(self, request_timeout: float | None = None) -> None:
        """End the watch."""
        await self._session.call(
            filesystem.REMOVE_WATCHER,
            filesystem.RemoveWatcherRequest(self._watcher_id),
            filesystem.RemoveWatcherResponse,
            request_timeout=request_timeout,
        )


class Files:
    """Reads and changes the files of a sandbox. Paths that are not absolute start at the user's home."""

    def __init__(self, session: Session) -> None:
        """Use this session."""
        self._session = session

    @overload
    async def read(
        self,
        path: str,
        format: Literal["text"] = "text",
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> str: ...
    @overload
    async def read(
        self,
        path: str,
        format: Literal["bytes"],
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> bytes: ...
    @overload
    async def read(
        self,
        path: str,
        format: Literal["stream"],
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> AsyncIterator[bytes]: ...
    async def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",  # noqa: A002 - the name is the interface
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> str | bytes | AsyncIterator[bytes]:
        """Read a file.

        Args:
            path: The file.
            format: `text` (UTF-8, wrong bytes replaced), `bytes`, or `stream` for an iterator of pieces.
            user: User of the sandbox; None for its default.
            request_timeout: Seconds for the request; of a stream, for each piece.

        Raises:
            PathNotFound: There is no such file.
            InvalidArgument: The path is a folder, or not a path.
        """
        params = _requests.file_params(path, user)
        if format == "stream":
            timeout = httpx.Timeout(self._session.client.connection.timeout_s(request_timeout))
            response = await self._session.open("GET", "/files", params=params, timeout=timeout)
            if not response.is_success:
                body = await response.aread()
                await response.aclose()
                raise _requests.api_error(response.status_code, body, missing=PathNotFound)
            return self._pieces(response)
        response = await self._session.request(
            "GET", "/files", params=params, request_timeout=request_timeout
        )
        if not response.is_success:
            raise _requests.api_error(response.status_code, response.content, missing=PathNotFound)
        return response.content.decode("utf-8", "replace") if format == "text" else response.content

    async def write(
        self,
        path: str,
        data: WriteData,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> WriteInfo:
        """Write a file: missing folders are made, an existing file is replaced.

        Args:
            path: The file.
            data: Text (as UTF-8), bytes, an open file, or an iterable of bytes; the latter two are streamed.
            user: User of the sandbox who will own it; None for its default.
            request_timeout: Seconds for the request.

        Raises:
            InvalidArgument: The path is a folder, or not a path.
            NotEnoughSpace: The sandbox's disk is full.
        """
        content = whole_of(data)
        response = await self._session.request(
            "POST",
            "/files",
            params=_requests.file_params(path, user),
            content=pieces_of(data) if content is None else content,
            headers={"Content-Type": "application/octet-stream"},
            request_timeout=request_timeout,
        )
        if not response.is_success:
            raise _requests.api_error(response.status_code, response.content, missing=PathNotFound)
        (written,) = response.json()
        return WriteInfo(written["name"], FileType(written.get("type", "file")), written["path"])

    async def write_files(
        self,
        files: Sequence[WriteEntry],
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> list[WriteInfo]:
        """Write several files one after the other; see `write`."""
        written: list[WriteInfo] = []
        for entry in files:
            info = await self.write(entry["path"], entry["data"], user, request_timeout)
            written.append(info)
        return written

    async def list(
        self,
        path: str,
        depth: int | None = 1,
        user: str | None = None,
        request_timeout: float | None = None,
    ) -> list[EntryInfo]:
        """List a folder.

        Args:
            path: The folder.
            depth: Levels to descend, at least 1.
            user: User of the sandbox; None for its default.
            request_timeout: Seconds for the request.

        Raises:
            PathNotFound: There is no such folder.
            InvalidArgument: The path is not a folder, or depth is less than 1.
        """
        if depth is not None and depth < 1:
            raise InvalidArgument(f"depth must be at least 1: {depth}")
        message = filesystem.ListDirRequest(path, depth or 1)
        try:
            answer = await self._session.call(
                filesystem.LIST_DIR,
                message,
                filesystem.ListDirResponse,
                user=user,
                request_timeout=request_timeout,
            )
        except NotFound as error:
            raise _path_error(error) from error
        return [_requests.read_entry(entry) for entry in answer.entries]

    async def exists(self, path: str, user: str | None = None, request_timeout: float | None = None) -> bool:
        """Whether there is a file, folder or link of that name."""
        try:
            await self.get_info(path, user, request_timeout)
        except NotFound:
            return False
        return True

    async def get_info(
        self, path: str, user: str | None = None, request_timeout: float | None = None
    ) -> EntryInfo:
        """Look at one entry; a link is not followed.

        Raises:
            PathNotFound: There is no such entry.
        """
        try:
            answer = await self._session.call(
                filesystem.STAT,
                filesystem.StatRequest(path),
                filesystem.StatResponse,
                user=user,
                request_timeout=request_timeout,
            )
        except NotFound as error:
            raise _path_error(error) from error
        return _requests.read_entry(answer.entry)

    async def remove(self, path: str, user: str | None = None, request_timeout: float | None = None) -> None:
        """Remove an entry and all below it; a missing one is no error."""
        await self._session.call(
            filesystem.REMOVE,
            filesystem.RemoveRequest(path),
            filesystem.RemoveResponse,
            user=user,
            request_timeout=request_timeout,
        )

    async def rename(
        self, old_path: str, new_path: str, user: str | None = None, request_timeout: float | None = None
    ) -> EntryInfo:
        """Move an entry; a file in the way is replaced.

        Raises:
            PathNotFound: There is no such entry.
        """
        try:
            answer = await self._session.call(
                filesystem.MOVE,
                filesystem.MoveRequest(old_path, new_path),
                filesystem.MoveResponse,
                user=user,
                request_timeout=request_timeout,
            )
        except NotFound as error:
            raise _path_error(error) from error
        return _requests.read_entry(answer.entry)

    async def make_dir(
        self, path: str, user: str | None = None, request_timeout: float | None = None
    ) -> bool:
        """Make a folder and its missing parents; False if it was there already."""
        try:
            await self._session.call(
                filesystem.MAKE_DIR,
                filesystem.MakeDirRequest(path),
                filesystem.MakeDirResponse,
                user=user,
                request_timeout=request_timeout,
            )
        except (AlreadyExists, Conflict):
            return False
        return True

    async def watch_dir(
        self,
        path: str,
        user: str | None = None,
        request_timeout: float | None = None,
        recursive: bool = False,
        include_entry: bool = False,
        allow_network_mounts: bool = False,
    ) -> WatchHandle:
        """Watch a folder; the handle gives the changes.

        Args:
            path: The folder.
            user: User of the sandbox; None for its default.
            request_timeout: Seconds for the request.
            recursive: Watch the folders below too.
            include_entry: Tell with each change what the entry looks like then.
            allow_network_mounts: Try it on network file systems too, where changes may be missed.

        Raises:
            PathNotFound: There is no such folder.
            InvalidArgument: The path is not a folder, or lies on a network file system.
        """
        message = filesystem.CreateWatcherRequest(path, recursive, include_entry, allow_network_mounts)
        try:
            answer = await self._session.call(
                filesystem.CREATE_WATCHER,
                message,
                filesystem.CreateWatcherResponse,
                user=user,
                request_timeout=request_timeout,
            )
        except NotFound as error:
            raise _path_error(error) from error
        return WatchHandle(self._session, answer.watcher_id)

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for piece in response.aiter_bytes():
                yield piece
        except httpx.TransportError as error:
            raise await self._session.explain(error) from error
        finally:
            await response.aclose()


def _path_error(error: NotFound) -> ClocheError:
    return PathNotFound(error.message)


def whole_of(data: WriteData) -> bytes | None:
    """Return the bytes of what is there as a whole; None for what is to be sent in pieces."""
    if isinstance(data, str):
        return data.encode()
    return bytes(data) if isinstance(data, (bytes, bytearray)) else None


async def pieces_of(data: WriteData) -> AsyncIterator[bytes]:
    """Yield the pieces of an open file or an iterable; reading a local file is not awaited."""
    if hasattr(data, "read"):
        opened: IO[bytes] | IO[str] = data  # pyright: ignore[reportAssignmentType] - has read()
        while piece := opened.read(_CHUNK_BYTES):
            yield piece.encode() if isinstance(piece, str) else piece
        return
    for piece in data:
        if not isinstance(piece, bytes):
            raise InvalidArgument(f"expected pieces of bytes: {type(piece).__name__}")
        yield piece
