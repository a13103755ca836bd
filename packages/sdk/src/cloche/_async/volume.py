"""Volumes: folders of a team that outlive its sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Self, Unpack, overload

import httpx

from cloche import _config, _requests, _volume_requests
from cloche._async.client import Client
from cloche._async.files import WriteData, pieces_of, whole_of
from cloche._config import ConnectionOptions
from cloche._either import Either
from cloche.errors import NotFound, PathNotFound, Unavailable, VolumeNotFound
from cloche.models import VolumeEntry, VolumeInfo


async def _list_all(_owner: type[AsyncVolume], **options: Unpack[ConnectionOptions]) -> Sequence[VolumeInfo]:
    async with Client(_config.resolve(options)) as client:
        answer = await client.api("GET", "/volumes")
    return [_volume_requests.read_volume(fields)[0] for fields in answer.json()]


async def _info_by_id(
    _owner: type[AsyncVolume], volume_id: str, **options: Unpack[ConnectionOptions]
) -> VolumeInfo:
    async with Client(_config.resolve(options)) as client:
        answer = await client.api("GET", _path_of(volume_id), missing=VolumeNotFound)
    return _volume_requests.read_volume(answer.json())[0]


def _path_of(volume_id: str) -> str:
    return f"/volumes/{_requests.path_part(volume_id)}"


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in response.aiter_bytes():
            yield piece
    except httpx.TransportError as error:
        raise Unavailable(f"connection lost: {error}") from error
    finally:
        await response.aclose()


class AsyncVolume:
    """A folder that outlives sandboxes; mount it with `volume_mounts`, or read and write it from here.

    Paths start at the volume's root. Owners are the ids that sandboxes see.
    """

    def __init__(self, client: Client, info: VolumeInfo, token: str) -> None:
        """Speak to the volume; use `create` or `connect` to get one."""
        self._client = client
        self._info = info
        self._token = token

    @classmethod
    async def create(cls, name: str, **options: Unpack[ConnectionOptions]) -> Self:
        """Make an empty volume.

        Raises:
            AlreadyExists: The team has a volume of that name.
            InvalidArgument: The name is not 1 to 128 of [a-zA-Z0-9_-].
            ResourceExhausted: The team has as many as it may have.
            NotEnoughSpace: The server's disk is full.
        """
        client = Client(_config.resolve(options))
        answer = await client.api("POST", "/volumes", body={"name": name})
        return cls(client, *_volume_requests.read_volume(answer.json()))

    @classmethod
    async def connect(cls, volume_id: str, **options: Unpack[ConnectionOptions]) -> Self:
        """Return the volume of that id.

        Raises:
            VolumeNotFound: There is none.
        """
        client = Client(_config.resolve(options))
        answer = await client.api("GET", _path_of(volume_id), missing=VolumeNotFound)
        return cls(client, *_volume_requests.read_volume(answer.json()))

    @classmethod
    async def destroy(cls, volume_id: str, **options: Unpack[ConnectionOptions]) -> bool:
        """Delete a volume with all it holds; False if there is none of that id.

        Raises:
            Conflict: A sandbox has it mounted.
        """
        async with Client(_config.resolve(options)) as client:
            try:
                await client.api("DELETE", _path_of(volume_id), missing=VolumeNotFound)
            except VolumeNotFound:
                return False
        return True

    @property
    def volume_id(self) -> str:
        """Id of the volume."""
        return self._info.volume_id

    @property
    def name(self) -> str:
        """Name by which sandboxes mount it."""
        return self._info.name

    @property
    def token(self) -> str:
        """What opens its content, and nothing else."""
        return self._token

    async def aclose(self) -> None:
        """Let go of connections; the volume stays."""
        await self._client.aclose()

    async def _entry(self, path: str, request_timeout: float | None = None) -> VolumeEntry:
        """Look at one entry; a link is not followed.

        Raises:
            PathNotFound: There is no such entry.
        """
        answer = await self._ask("GET", "path", {"path": path}, request_timeout=request_timeout)
        return _volume_requests.read_entry(answer.json())

    async def _entries(
        self, path: str, depth: int | None = None, request_timeout: float | None = None
    ) -> Sequence[VolumeEntry]:
        """List a folder, `depth` levels deep.

        Raises:
            PathNotFound: There is no such folder.
        """
        params = _volume_requests.query(path, depth=depth)
        answer = await self._ask("GET", "dir", params, request_timeout=request_timeout)
        return _volume_requests.read_entries(answer.json())

    get_info = Either(_info_by_id, _entry)
    list = Either(_list_all, _entries)

    async def exists(self, path: str, request_timeout: float | None = None) -> bool:
        """Whether there is a file, folder or link of that name."""
        try:
            await self._entry(path, request_timeout)
        except NotFound:
            return False
        return True

    async def make_dir(
        self,
        path: str,
        uid: int | None = None,
        gid: int | None = None,
        mode: int | None = None,
        force: bool = False,
        request_timeout: float | None = None,
    ) -> VolumeEntry:
        """Make a folder; with `force` also those above it, and one that is there is no error.

        Raises:
            AlreadyExists: Something is there.
            PathNotFound: The folder above is missing.
        """
        params = _volume_requests.query(path, uid=uid, gid=gid, mode=mode, force=force)
        answer = await self._ask("POST", "dir", params, request_timeout=request_timeout)
        return _volume_requests.read_entry(answer.json())

    async def update_metadata(
        self,
        path: str,
        uid: int | None = None,
        gid: int | None = None,
        mode: int | None = None,
        request_timeout: float | None = None,
    ) -> VolumeEntry:
        """Change owner and mode of an entry.

        Raises:
            PathNotFound: There is no such entry.
        """
        wanted = {"uid": uid, "gid": gid, "mode": mode}
        body = {key: value for key, value in wanted.items() if value is not None}
        answer = await self._ask("PATCH", "path", {"path": path}, json=body, request_timeout=request_timeout)
        return _volume_requests.read_entry(answer.json())

    async def remove(self, path: str, request_timeout: float | None = None) -> None:
        """Remove an entry and all below it.

        Raises:
            PathNotFound: There is no such entry.
        """
        await self._ask("DELETE", "path", {"path": path}, request_timeout=request_timeout)

    async def write_file(
        self,
        path: str,
        data: WriteData,
        uid: int | None = None,
        gid: int | None = None,
        mode: int | None = None,
        force: bool = False,
        request_timeout: float | None = None,
    ) -> VolumeEntry:
        """Write a file, in full or not at all; with `force` in the place of one that is there.

        Args:
            path: The file; its folder has to be there.
            data: Text (as UTF-8), bytes, an open file, or an iterable of bytes; the latter two are streamed.
            uid: Owner; None for root, or the owner of the file that is replaced.
            gid: Group, as for the owner.
            mode: Permission bits; None for 0o644, or those of the file that is replaced.
            force: Replace a file that is there.
            request_timeout: Seconds for the request.

        Raises:
            AlreadyExists: Something is there.
            PathNotFound: The folder is missing.
            NotEnoughSpace: The volume is full.
        """
        content = whole_of(data)
        answer = await self._ask(
            "PUT",
            "file",
            _volume_requests.query(path, uid=uid, gid=gid, mode=mode, force=force),
            content=pieces_of(data) if content is None else content,
            request_timeout=request_timeout,
        )
        return _volume_requests.read_entry(answer.json())

    @overload
    async def read_file(
        self, path: str, format: Literal["text"] = "text", request_timeout: float | None = None
    ) -> str: ...
    @overload
    async def read_file(
        self, path: str, format: Literal["bytes"], request_timeout: float | None = None
    ) -> bytes: ...
    @overload
    async def read_file(
        self, path: str, format: Literal["stream"], request_timeout: float | None = None
    ) -> AsyncIterator[bytes]: ...
    async def read_file(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",  # noqa: A002 - the name is the interface
        request_timeout: float | None = None,
    ) -> str | bytes | AsyncIterator[bytes]:
        """Read a file.

        Args:
            path: The file; links are followed, inside the volume.
            format: `text` (UTF-8, wrong bytes replaced), `bytes`, or `stream` for an iterator of pieces.
            request_timeout: Seconds for the request; of a stream, for each piece.

        Raises:
            PathNotFound: There is no such file.
        """
        response = await self._open("GET", "file", {"path": path}, request_timeout=request_timeout)
        if format == "stream":
            return _pieces(response)
        try:
            content = await response.aread()
        finally:
            await response.aclose()
        return content.decode("utf-8", "replace") if format == "text" else content

    async def _ask(
        self,
        method: str,
        resource: str,
        params: dict[str, str],
        *,
        content: bytes | AsyncIterator[bytes] | None = None,
        json: dict[str, int] | None = None,
        request_timeout: float | None = None,
    ) -> httpx.Response:
        response = await self._open(
            method, resource, params, content=content, json=json, request_timeout=request_timeout
        )
        try:
            await response.aread()
        finally:
            await response.aclose()
        return response

    async def _open(
        self,
        method: str,
        resource: str,
        params: dict[str, str],
        *,
        content: bytes | AsyncIterator[bytes] | None = None,
        json: dict[str, int] | None = None,
        request_timeout: float | None = None,
    ) -> httpx.Response:
        """Send a request about the content; the body of the answer is still to be read."""
        request = self._client.http.build_request(
            method,
            f"{self._client.connection.api_url}/volumecontent/{_requests.path_part(self.volume_id)}/{resource}",
            params=params,
            content=content,
            json=json,
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=self._client.connection.timeout_s(request_timeout),
        )
        response = await self._client.send(request, stream=True)
        if not response.is_success:
            try:
                body = await response.aread()
            finally:
                await response.aclose()
            raise _requests.api_error(response.status_code, body, missing=PathNotFound)
        return response
