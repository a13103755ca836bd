"""POST /files: bodies of any size to files, in constant memory and with the rights of the user."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import zlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from cloche_agent.credentials import acting_as
from cloche_agent.filesystem.entries import read_metadata, replace_metadata
from cloche_agent.filesystem.multipart import MultipartParser, PartBegin, PartData, PartEnd
from cloche_agent.filesystem.paths import explained, resolve, shown
from cloche_agent.http import Response, json_response
from cloche_wire.errors import InvalidArgument, NotEnoughSpace

if TYPE_CHECKING:
    from types import TracebackType

    from cloche_agent.http import Headers, Request
    from cloche_agent.users import User

_METADATA_HEADER = "x-metadata-"
_LONGEST_METADATA_KEY = 246
_LARGEST_METADATA_BYTES = 4096
_UNPACKED_PIECE_BYTES = 1 << 20


async def upload(request: Request, path: str | None, user: User, default_workdir: str | None) -> Response:
    """Write the files of one request as `user` and answer with where they are.

    Missing folders are made (0755), existing files are emptied first. What was written before an error stays,
    as with E2B, but for the file that found no space.

    Args:
        request: `multipart/form-data` with parts named `file`, or `application/octet-stream`.
        path: Target that the query names; wins over the file name of a part.
        user: Whose rights and whose files.
        default_workdir: For an empty path.

    Raises:
        InvalidArgument: Malformed body, bad path, the same path twice, bad metadata.
        PermissionDenied, NotEnoughSpace: As the kernel says.
    """
    content_type = (request.headers.get("content-type") or "").strip()
    metadata = _metadata(request.headers)
    body = _decoded(request)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/octet-stream":
        if path is None:
            raise InvalidArgument("query parameter path is required for application/octet-stream")
        target = resolve(path, user, default_workdir)
        with Target(target, user) as file:
            async for piece in body:
                await file.write(piece)
            file.finish(metadata)
        return json_response([_written(target, metadata)])
    if kind != "multipart/form-data":
        raise InvalidArgument(f"unsupported content type: {kind}")
    return json_response(
        await _upload_parts(body, MultipartParser(content_type), path, user, metadata, default_workdir)
    )


async def _upload_parts(
    body: AsyncIterator[bytes],
    parser: MultipartParser,
    path: str | None,
    user: User,
    metadata: dict[str, str],
    default_workdir: str | None,
) -> list[dict[str, object]]:
    written: dict[str, dict[str, object]] = {}
    file: Target | None = None
    try:
        async for piece in body:
            for event in parser.feed(piece):
                match event:
                    case PartBegin(name="file", filename=filename):
                        target = resolve(filename or "" if path is None else path, user, default_workdir)
                        if target in written:
                            raise InvalidArgument(f"path '{shown(target)}' is given twice in one upload")
                        written[target] = _written(target, metadata)
                        file = Target(target, user)
                    case PartData(data) if file is not None:
                        await file.write(data)
                    case PartEnd() if file is not None:
                        file.finish(metadata)
                        file.close()
                        file = None
                    case _:
                        pass  # a form field that is no file
        parser.close()
    finally:
        if file is not None:
            file.close()
    return list(written.values())


class Target:
    """A file that is being written to as a user."""

    def __init__(self, path: str, user: User) -> None:
        """Open it, empty, with its folders made.

        Raises:
            InvalidArgument, PermissionDenied, NotEnoughSpace: See `paths.explained`.
        """
        self._path = path
        self._user = user
        with explained(path), acting_as(user):
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120
            # SAFETY: as the user, so the kernel follows links with the user's rights only; O_NONBLOCK, else a
            # FIFO waits for its reader. Emptied only after it is known to be a file.
            flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self._descriptor = os.open(path, flags | os.O_EXCL, 0o666)
                self._is_new = True
            except FileExistsError:
                self._descriptor = os.open(path, flags, 0o666)
                self._is_new = False
            try:
                found = os.fstat(self._descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise InvalidArgument(f"path '{shown(path)}' is not a regular file")
                if user.uid in (0, found.st_uid):
                    # What E2B does to every file: a folder with the set-group bit gives its own group, and
                    # those who watch are told of a change of rights, which clients' tests count. File systems
                    # without owners refuse it; the file can be written all the same.
                    with contextlib.suppress(PermissionError):
                        os.fchown(self._descriptor, user.uid, user.gid)
                if found.st_size:  # else whoever watches the folder is told of a write that was none
                    os.ftruncate(self._descriptor, 0)
            except BaseException:
                os.close(self._descriptor)
                raise

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def write(self, data: bytes | memoryview) -> None:
        """Append `data`.

        Raises:
            NotEnoughSpace: The disk or the quota is full. What was written of the file is given back then, so
                that half of it is not taken for all of it and the sandbox can go on.
        """
        rest = memoryview(data)
        try:
            with explained(self._path):
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
        except NotEnoughSpace:
            self._give_back()
            raise
        await asyncio.sleep(0)  # a fast sender never makes us wait: let the others have their turn

    def _give_back(self) -> None:
        """Empty the file, and remove it if it is there only since this upload."""
        os.ftruncate(self._descriptor, 0)
        ours = os.fstat(self._descriptor)
        with contextlib.suppress(OSError), acting_as(self._user):
            found = os.lstat(self._path)
            if self._is_new and (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                os.unlink(self._path)  # noqa: PTH108

    def finish(self, metadata: dict[str, str]) -> None:
        """Set the metadata, in place of what an earlier upload left.

        Raises:
            InvalidArgument: The file system holds no metadata.
        """
        if not metadata and not read_metadata(self._descriptor):
            return
        with explained(self._path), acting_as(self._user):
            replace_metadata(self._descriptor, metadata)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _written(path: str, metadata: dict[str, str]) -> dict[str, object]:
    entry: dict[str, object] = {"path": shown(path), "name": shown(path).rpartition("/")[2], "type": "file"}
    return {**entry, "metadata": metadata} if metadata else entry


def _metadata(headers: Headers) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        if not name.startswith(_METADATA_HEADER):
            continue
        key = name.removeprefix(_METADATA_HEADER)
        if not key or len(key) > _LONGEST_METADATA_KEY:
            raise InvalidArgument(
                f"metadata key is empty or longer than {_LONGEST_METADATA_KEY} bytes: {key[:64]}"
            )
        if not (value.isascii() and value.isprintable()):
            raise InvalidArgument(f"metadata value is not printable ascii: {key}")
        found[key] = value
    if sum(len(key) + len(value) for key, value in found.items()) > _LARGEST_METADATA_BYTES:
        raise InvalidArgument(f"metadata is larger than {_LARGEST_METADATA_BYTES} bytes")
    return found


def _decoded(request: Request) -> AsyncIterator[bytes]:
    encoding = (request.headers.get("content-encoding") or "identity").strip().lower()
    if encoding == "identity":
        return request.stream()
    if encoding != "gzip":
        raise InvalidArgument(f"unsupported content encoding: {encoding}")
    return _unpacked(request.stream())


async def _unpacked(packed: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The content of a gzip stream of one or more members, at most a MiB at a time."""
    unpacker = zlib.decompressobj(wbits=31)
    begun = False
    async for piece in packed:
        rest, data = piece, b""
        # A full piece of output: zlib may hold more of it, although it has taken all the input.
        while rest or (len(data) == _UNPACKED_PIECE_BYTES and not unpacker.eof):
            if unpacker.eof:
                unpacker = zlib.decompressobj(wbits=31)
            begun = True
            try:
                data = unpacker.decompress(rest, _UNPACKED_PIECE_BYTES)
            except zlib.error as error:
                raise InvalidArgument("malformed gzip body") from error
            rest = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if data:
                yield data
    if begun and not unpacker.eof:
        raise InvalidArgument("gzip body ends early")
