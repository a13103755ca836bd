"""GET and HEAD /files: one file to a client, in pieces, whatever its size."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import secrets
import stat
import zlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING
from urllib.parse import quote

from cloche_agent.credentials import acting_as
from cloche_agent.filesystem import ranges
from cloche_agent.filesystem.paths import explained, shown
from cloche_agent.http import AbortConnection, Response, error_response
from cloche_wire.errors import InvalidArgument

if TYPE_CHECKING:
    from cloche_agent.http import Request
    from cloche_agent.users import User

_PIECE_BYTES = 256 * 1024
_SNIFFED_BYTES = 512
_TEXT_BYTES = frozenset({7, 8, 9, 10, 12, 13, 27, *range(32, 127), *range(128, 256)})
# The built-in table only: the machine's own files are the template's to write.
_types = mimetypes.MimeTypes(())


async def download(request: Request, path: str, user: User) -> Response:
    """Answer with the file at `path`, read as `user`.

    Raises:
        PathNotFound, PermissionDenied: As the kernel says.
        InvalidArgument: Not a regular file. FIFOs and devices are never read: they may have no end, or never
            begin.
        RangeNotSatisfiable: See `ranges`.
    """
    with explained(path), acting_as(user):
        # SAFETY: O_NONBLOCK, else opening a FIFO waits for a writer; O_NOCTTY, else a terminal could become
        # ours.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise InvalidArgument(f"path '{shown(path)}' is a directory")
        if not stat.S_ISREG(found.st_mode):
            raise InvalidArgument(f"path '{shown(path)}' is not a regular file")
        answer = _answer(request, path, descriptor, found)
    except BaseException:
        os.close(descriptor)
        raise
    if isinstance(answer.body, bytes):
        os.close(descriptor)
    return answer


def _answer(request: Request, path: str, descriptor: int, found: os.stat_result) -> Response:
    """The answer for an open file; a body that is no bytes owns the descriptor."""
    headers = [
        ("etag", ranges.etag(found)),
        ("last-modified", ranges.http_date(found)),
        ("accept-ranges", "bytes"),
        ("vary", "Accept-Encoding"),
    ]
    if ranges.has_failed_precondition(request.headers, found):
        return Response(412, headers)
    if ranges.is_unchanged(request.headers, found):
        return Response(304, headers)
    headers += [
        ("content-type", _content_type(path, descriptor)),
        ("content-disposition", _disposition(path)),
        ("x-content-type-options", "nosniff"),
    ]
    wants_gzip = ranges.wants_gzip(request.headers)
    if request.method == "HEAD":  # for which no range is defined: RFC 9110, section 14.2
        headers.append(("content-length", str(found.st_size)))
        return Response(200, headers)
    try:
        spans = ranges.requested_spans(request.headers, found)
    except ranges.RangeNotSatisfiable as error:
        refusal = error_response(error)
        refusal.headers.append(("content-range", f"bytes */{found.st_size}"))
        return refusal
    if len(spans) > 1:
        return _several(headers, descriptor, spans, found.st_size)
    if spans:
        headers.append(("content-range", _content_range(spans[0], found.st_size)))
        return _plain(206, headers, descriptor, spans[0])
    if wants_gzip:
        headers.append(("content-encoding", "gzip"))
        return Response(200, headers, _gzip(descriptor))
    if found.st_size <= _PIECE_BYTES:
        return _small(headers, descriptor)
    return _plain(200, headers, descriptor, ranges.Span(0, found.st_size))


def _small(headers: list[tuple[str, str]], descriptor: int) -> Response:
    """Read first, then promise a length: files of /proc and /sys tell none, or a wrong one."""
    data = _read(descriptor, 0, _PIECE_BYTES)
    if len(data) < _PIECE_BYTES:
        return Response(200, headers, data)
    return Response(200, headers, _to_end(descriptor))


def _plain(status: int, headers: list[tuple[str, str]], descriptor: int, span: ranges.Span) -> Response:
    length = span.end - span.start
    if length <= _PIECE_BYTES:
        return Response(status, headers, _read(descriptor, span.start, length))
    headers.append(("content-length", str(length)))
    return Response(status, headers, _pieces(descriptor, span))


def _content_range(span: ranges.Span, size: int) -> str:
    return f"bytes {span.start}-{span.end - 1}/{size}"


def _several(
    headers: list[tuple[str, str]], descriptor: int, spans: list[ranges.Span], size: int
) -> Response:
    """Many ranges in one `multipart/byteranges` body, RFC 9110, section 14.6."""
    boundary = secrets.token_hex(15)
    kind = dict(headers)["content-type"]
    parts: list[ranges.Span | bytes] = []
    for span in spans:
        head = f"--{boundary}\r\nContent-Type: {kind}\r\nContent-Range: {_content_range(span, size)}\r\n\r\n"
        parts += [head.encode("latin-1"), span, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    length = sum(len(part) if isinstance(part, bytes) else part.end - part.start for part in parts)
    headers = [(name, value) for name, value in headers if name != "content-type"]
    headers.append(("content-type", f"multipart/byteranges; boundary={boundary}"))
    headers.append(("content-length", str(length)))
    return Response(206, headers, _pieces(descriptor, *parts))


async def _pieces(descriptor: int, *parts: ranges.Span | bytes) -> AsyncGenerator[bytes, None]:
    """Ranges of the file, and bytes between them as they are."""
    try:
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            offset = part.start
            while offset < part.end:
                piece = _read(descriptor, offset, min(_PIECE_BYTES, part.end - offset))
                if not piece:
                    raise AbortConnection  # the file shrank: the promised length cannot be kept
                offset += len(piece)
                yield piece
                await asyncio.sleep(0)  # a fast reader never makes us wait: let the others have their turn
    finally:
        os.close(descriptor)


async def _to_end(descriptor: int) -> AsyncGenerator[bytes, None]:
    try:
        offset = 0
        while piece := _read(descriptor, offset, _PIECE_BYTES):
            offset += len(piece)
            yield piece
            await asyncio.sleep(0)
    finally:
        os.close(descriptor)


async def _gzip(descriptor: int) -> AsyncGenerator[bytes, None]:
    packer = zlib.compressobj(level=1, wbits=31)
    async for piece in _to_end(descriptor):
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()


def _read(descriptor: int, offset: int, length: int) -> bytes:
    try:
        return os.pread(descriptor, length, offset)
    except BlockingIOError:
        return b""  # a file of /proc that would wait for news


def _content_type(path: str, descriptor: int) -> str:
    guessed, _ = _types.guess_type(path, strict=False)
    if guessed is None:
        head = _read(descriptor, 0, _SNIFFED_BYTES)
        guessed = "text/plain" if _TEXT_BYTES.issuperset(head) else "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed


def _disposition(path: str) -> str:
    name = shown(path).rpartition("/")[2]
    if name.isascii() and name.isprintable():
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'inline; filename="{quoted}"'
    return f"inline; filename*=utf-8''{quote(name, safe='')}"
