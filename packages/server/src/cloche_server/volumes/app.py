"""`/volumecontent/{id}/{path,dir,file}`: requests become acts on the tree of one volume."""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Annotated, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloche_server.volumes import changes, entries, paths
from cloche_server.volumes.changes import Attributes
from cloche_wire.errors import (
    AlreadyExists,
    ClocheError,
    Conflict,
    InvalidArgument,
    NotEnoughSpace,
    NotFound,
    PathNotFound,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

MAX_BODY_BYTES = 64 * 1024
CHUNK_BYTES = 256 * 1024
"""Read and written at once; what one transfer takes of memory is a small multiple of it."""

_TARGET = re.compile(rb"/volumecontent/([A-Za-z0-9_-]{1,64})/(path|dir|file)")
_BEARER = re.compile(r"[Bb]earer +([!-~]{1,512})\Z")

log = structlog.get_logger()
T = TypeVar("T")

OpenRoot = Callable[[str, str], Awaitable[int]]
"""From a volume's id and a token to a descriptor of its root, which the caller closes.

Raises Unauthenticated where the token is not the volume's.
"""

_Id = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
_Mode = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]


class _Change(msgspec.Struct, frozen=True):
    """Body of PATCH."""

    uid: _Id | None = None
    gid: _Id | None = None
    mode: _Mode | None = None


class _Query(msgspec.Struct, frozen=True):
    """Query of every request; which fields count depends on it."""

    path: str
    uid: _Id | None = None
    gid: _Id | None = None
    mode: _Mode | None = None
    force: bool = False
    depth: Annotated[int, msgspec.Meta(ge=0, le=entries.MAX_DEPTH)] = 1

    @property
    def attributes(self) -> Attributes:
        """Owner and mode that are asked for."""
        return Attributes(self.uid, self.gid, self.mode)


class _Call(NamedTuple):
    request: Request
    root: int
    path: str
    query: _Query


class ContentApp:
    """The ASGI application."""

    def __init__(self, open_root: OpenRoot) -> None:
        """Serve the volumes that `open_root` opens."""
        self._open_root = open_root
        self._handlers: dict[tuple[str, str], Callable[[_Call], Awaitable[Response]]] = {
            ("GET", "path"): _stat,
            ("PATCH", "path"): _change,
            ("DELETE", "path"): _remove,
            ("GET", "dir"): _list,
            ("POST", "dir"): _make_folder,
            ("GET", "file"): _read,
            ("PUT", "file"): _write,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever goes wrong, the answer is JSON."""
        request = Request(scope, receive)
        root = -1
        has_begun = False

        async def send_noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            volume_id, resource = _target(request)
            handler = self._handlers.get((request.method, resource))
            root = await self._open_root(volume_id, _token(request))
            if handler is None:
                raise _MethodNotAllowed(f"method is not served here: {request.method}")
            query = _read_query(request)
            response = await handler(_Call(request, root, paths.normalized(query.path), query))
            await response(scope, receive, send_noting)
        except ClientDisconnect:
            return
        except Exception as error:
            if has_begun:
                raise  # the connection is broken off, so that nobody takes what was sent for all
            await _problem(error, request)(scope, receive, send)
        finally:
            if root >= 0:
                os.close(root)


def create_app(open_root: OpenRoot) -> ASGIApp:
    """Return the application with its middleware: open to every origin, since the token is in a header."""
    return CORSMiddleware(
        ContentApp(open_root), allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], max_age=600
    )


# --- requests --------------------


class _MethodNotAllowed(NotFound):
    http_status = 405


def _target(request: Request) -> tuple[str, str]:
    raw: bytes = request.scope["raw_path"].partition(b"?")[0]
    match = _TARGET.fullmatch(raw)
    if match is None:
        raise NotFound("no such path")
    return match[1].decode(), match[2].decode()


def _token(request: Request) -> str:
    match = _BEARER.match(request.headers.get("authorization", ""))
    if match is None:
        raise Unauthenticated("no token", hint="Authorization: Bearer TOKEN OF THE VOLUME")
    return match[1]


def _read_query(request: Request) -> _Query:
    # Numbers and truth values as clients of any language write them.
    given = {key: value for key, value in request.query_params.items() if value or key == "path"}
    if "force" in given:
        given["force"] = given["force"].lower()
    try:
        return msgspec.convert(given, _Query, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"bad query: {error}") from error


async def _stat(call: _Call) -> Response:
    return await _entry(call, 200)


async def _change(call: _Call) -> Response:
    body = bytearray()
    async for chunk in call.request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"request body is larger than {MAX_BODY_BYTES} bytes")
    try:
        wanted = msgspec.json.decode(body or b"{}", type=_Change)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"bad request body: {error}") from error
    await _act(changes.change, call.root, call.path, Attributes(wanted.uid, wanted.gid, wanted.mode))
    return await _entry(call, 200)


async def _remove(call: _Call) -> Response:
    await _act(changes.remove, call.root, call.path)
    return Response(status_code=204)


async def _make_folder(call: _Call) -> Response:
    query = call.query
    make = functools.partial(changes.make_folder, force=query.force)
    await _act(make, call.root, call.path, query.attributes)
    return await _entry(call, 201)


async def _list(call: _Call) -> Response:
    """Stream the listing: a tenant decides how long it is."""
    batches = entries.list_folder(call.root, call.path, max(1, call.query.depth))
    first = await _act(_following, batches)

    async def body() -> AsyncGenerator[bytes, None]:
        separator = b"["
        batch = first
        while batch is not None:
            if batch:
                yield separator + b",".join(map(msgspec.json.encode, batch))
                separator = b","
            batch = await _act(_following, batches)
        yield b"[]" if separator == b"[" else b"]"

    return StreamingResponse(body(), media_type="application/json")


def _following(batches: Iterator[list[entries.Entry]]) -> list[entries.Entry] | None:
    return next(batches, None)


async def _read(call: _Call) -> Response:
    opened, size = await _act(changes.open_file, call.root, call.path)

    async def body() -> AsyncGenerator[bytes, None]:
        try:
            done = 0
            # What is appended meanwhile is not sent; what is cut off meanwhile breaks the answer off.
            while data := await _act(os.pread, opened, min(CHUNK_BYTES, size - done), done):
                done += len(data)
                yield data
        finally:
            os.close(opened)

    headers = {"content-length": str(size), "x-content-type-options": "nosniff"}
    return StreamingResponse(body(), media_type="application/octet-stream", headers=headers)


async def _write(call: _Call) -> Response:
    begin = functools.partial(changes.Upload, force=call.query.force)
    upload = await _act(begin, call.root, call.path)
    try:
        waiting = bytearray()
        async for chunk in call.request.stream():
            waiting += chunk
            if len(waiting) >= CHUNK_BYTES:
                await _act(upload.write, waiting)
                waiting = bytearray()
        await _act(upload.write, waiting)
        await _act(upload.finish, call.query.attributes)
    finally:
        upload.close()
    return await _entry(call, 201)


# --- answers --------------------


async def _entry(call: _Call, status: int) -> Response:
    entry = await _act(entries.entry_at, call.root, call.path)
    return Response(msgspec.json.encode(entry), status, media_type="application/json")


async def _act(function: Callable[..., T], *args: object) -> T:
    """Run a blocking act on a thread, to its end: a descriptor must not be closed under it."""
    return await anyio.to_thread.run_sync(function, *args)


_KINDS: dict[int, type[ClocheError]] = {
    errno.ENOENT: PathNotFound,
    errno.ENOTDIR: PathNotFound,
    errno.EEXIST: AlreadyExists,
    errno.ELOOP: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.EXDEV: InvalidArgument,
    errno.EINVAL: InvalidArgument,
    errno.EAGAIN: Conflict,  # a lease of a sandbox, which nobody waits for here
    errno.ENOTEMPTY: Conflict,
    errno.EMLINK: NotEnoughSpace,
    errno.ENOSPC: NotEnoughSpace,
    errno.EDQUOT: NotEnoughSpace,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: Unavailable,
    errno.EIO: Unavailable,
    errno.EMFILE: Unavailable,
}


def _problem(error: Exception, request: Request) -> Response:
    """Tell an error as `{"code": text, "message": text}`; the text of the code is the status."""
    if isinstance(error, OSError) and error.errno in _KINDS:
        path = request.query_params.get("path", "")[:200]
        error = _KINDS[error.errno](f"{_plain(error)}: {path}")
    if not isinstance(error, ClocheError):
        log.error("content.request_failed", method=request.method, error=f"{type(error).__name__}: {error}")
        error = ClocheError(HTTPStatus.INTERNAL_SERVER_ERROR.phrase.lower())
    body = {"code": str(error.http_status), "message": str(error)}
    headers = {"www-authenticate": "Bearer"} if error.http_status == HTTPStatus.UNAUTHORIZED else None
    return Response(msgspec.json.encode(body), error.http_status, headers, media_type="application/json")


def _plain(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EMLINK}:
        return "the volume is full"
    return (os.strerror(error.errno or 0)).lower()
