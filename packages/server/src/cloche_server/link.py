"""Requests between the server's own processes: one Unix connection per call, JSON frames, descriptors.

A frame is a 4-byte big-endian length and a JSON object. The caller sends `{"method", "params"}`; the answer
is `{"result"}` or `{"error": {"type", "message", "hint"}}`, where the type is a class name of
`cloche_wire.errors`. A method that answers with events keeps the connection and sends `{"event", "data"}`
frames until one side closes it.

One connection per call costs about 0.1 ms and needs no multiplexing, no background reader and no repair
after either side was killed: the next call simply connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog

from cloche_server.readiness import until_readable
from cloche_wire.errors import ClocheError, Internal, InvalidArgument, Unavailable, error_types

MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_DESCRIPTORS = 4
_FULL_QUEUE_PAUSE_S = 0.005

log = structlog.get_logger()
T = TypeVar("T")


class NobodyListens(Unavailable):
    """The other process is not there at the moment: the call has surely not been made."""


class Event(NamedTuple):
    """One event frame: its name and the struct that goes with it."""

    name: str
    data: object


class Answer(NamedTuple):
    """What a handler gives back.

    A result, descriptors to pass (closed by the link after sending), events to follow. An error in their
    middle is told, and ends them.
    """

    result: object
    descriptors: tuple[int, ...] = ()
    events: AsyncIterator[Event] | None = None
    at_end: Callable[[], Awaitable[None]] | None = None
    """Called when the link is at its end, whoever has ended it, also when the answer reached nobody."""


Handler = Callable[[str, msgspec.Raw], Awaitable[Answer]]
Method = Callable[[msgspec.Raw], Awaitable[Answer]]
"""Answers one method, given its params."""


class _Request(msgspec.Struct):
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _Error(msgspec.Struct):
    type: str
    message: str
    hint: str | None = None


class _Reply(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Error | None = None
    event: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")


# --- caller's side ---------------------------------------------------------------------------------


async def call(path: Path, method: str, params: object, result_type: type[T], *, timeout_s: float) -> T:
    """Ask the process behind `path` once.

    Raises:
        NobodyListens: Nobody listens there.
        Unavailable: The connection broke before the answer; the act may have been done.
        ClocheError: Whatever the other side raised, as the same class.
        TimeoutError: No answer in time.
    """
    answer, descriptors = await call_for_descriptors(path, method, params, timeout_s=timeout_s)
    for descriptor in descriptors:
        socket.close(descriptor)
    return msgspec.json.decode(answer, type=result_type, strict=False)


async def call_for_descriptors(
    path: Path, method: str, params: object, *, timeout_s: float
) -> tuple[msgspec.Raw, list[int]]:
    """Like `call`, and hand over the descriptors that came with the answer.

    The caller owns and closes them.
    """
    async with asyncio.timeout(timeout_s):
        connection = await _connect(path)
        try:
            await _send(connection, _Request(method, msgspec.Raw(msgspec.json.encode(params))))
            reply, descriptors = await _receive(connection)
        except OSError as error:
            raise Unavailable(f"{path.name} broke the connection: {method}: {error}") from error
        finally:
            connection.close()
    if reply is None:
        raise Unavailable(f"{path.name} closed the connection before it answered: {method}")
    _raise_error(reply)
    return reply.result, descriptors


async def subscribe(
    path: Path, method: str, result_type: type[T], params: object = None
) -> AsyncGenerator[T | tuple[str, msgspec.Raw], None]:
    """Yield the first result, then `(event name, raw data)` for every event, until the other side goes away.

    Raises:
        NobodyListens: Nobody listens there.
        ClocheError: Whatever the other side raised, also in the middle of the events.
    """
    connection = await _connect(path)
    try:
        await _send(connection, _Request(method, msgspec.Raw(msgspec.json.encode(params or {}))))
        reply, _ = await _receive(connection)
        if reply is None:
            return
        _raise_error(reply)
        yield msgspec.json.decode(reply.result, type=result_type, strict=False)
        while True:
            reply, _ = await _receive(connection)
            if reply is None:
                return
            _raise_error(reply)
            yield (reply.event or "", reply.data)
    finally:
        connection.close()


# --- answering side --------------------------------------------------------------------------------


def decode(params: msgspec.Raw, kind: type[T]) -> T:
    """Params as a struct.

    Raises:
        msgspec.ValidationError: They are none; `serve` tells the caller.
    """
    return msgspec.json.decode(params, type=kind)


def listen(path: Path, *, owner_uid: int) -> socket.socket:
    """Return a listening socket at `path` that only `owner_uid` and root can connect to.

    A stale one is replaced.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    path.chmod(0o600)
    # SAFETY: the path lies in our own run folder, which only root can write to, so it is the socket bound
    # above. Connecting needs write permission on the socket file (unix(7)).
    os.chown(path, owner_uid, owner_uid, follow_symlinks=False)
    listener.listen(1024)
    return listener


async def serve(listener: socket.socket, handler: Handler) -> None:
    """Answer calls until cancelled. A caller that goes away does not cancel a handler that has begun."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            tasks.create_task(_answer(connection, handler))


async def _answer(connection: socket.socket, handler: Handler) -> None:
    try:
        request = await _receive_request(connection)
        if request is None:
            return
        try:
            answer = await handler(request.method, request.params)
        except ClocheError as error:
            await _send(connection, _told(error))
            return
        except msgspec.ValidationError as error:
            await _send(connection, {"error": _Error(InvalidArgument.__name__, str(error))})
            return
        except Exception:
            log.exception("link.handler_failed", method=request.method)
            await _send(connection, {"error": _Error(Internal.__name__, f"{request.method} failed")})
            return
        try:
            await _send(connection, {"result": answer.result}, answer.descriptors)
            if answer.events is not None:
                await _send_events(connection, answer.events)
        finally:
            if answer.at_end is not None:
                await answer.at_end()
    except OSError:
        return  # the caller went away: it has nobody left to tell
    except msgspec.MsgspecError as error:
        log.warning("link.unreadable", error=str(error))
    finally:
        connection.close()


async def _send_events(connection: socket.socket, events: AsyncIterator[Event]) -> None:
    """Send events until there are no more, or the caller goes, which else only the next one would show."""
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_forward_events(connection, events))
        leaving = tasks.create_task(until_readable(connection.fileno()))  # callers say nothing more
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        sending.cancel()
        leaving.cancel()


async def _forward_events(connection: socket.socket, events: AsyncIterator[Event]) -> None:
    with contextlib.suppress(OSError):  # the caller went away
        try:
            async for event in events:
                await _send(connection, {"event": event.name, "data": event.data})
        except ClocheError as error:
            await _send(connection, _told(error))
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()


def _told(error: ClocheError) -> dict[str, _Error]:
    return {"error": _Error(type(error).__name__, error.message, error.hint)}


# --- frames ----------------------------------------------------------------------------------------


async def _connect(path: Path) -> socket.socket:
    connection = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        while True:
            try:
                connection.connect(str(path))
                break
            except BlockingIOError:
                # The queue of the listener is full, and EAGAIN of a Unix socket is no connection under way
                # (unix(7)), which is what asyncio's own connect takes it for.
                await asyncio.sleep(_FULL_QUEUE_PAUSE_S)
    except OSError as error:
        connection.close()
        raise NobodyListens(f"{path.name} does not answer: {error.strerror}") from error
    except BaseException:
        connection.close()
        raise
    return connection


async def _send(connection: socket.socket, frame: object, descriptors: tuple[int, ...] = ()) -> None:
    body = msgspec.json.encode(frame)
    data = struct.pack(">I", len(body)) + body
    try:
        if descriptors:
            # SAFETY: the peer is one of our own processes (mode 0600, owner checked by the kernel at
            # connect).
            sent = socket.send_fds(connection, [data], list(descriptors))
            data = data[sent:]
    finally:
        for descriptor in descriptors:
            socket.close(descriptor)
    if data:
        await asyncio.get_running_loop().sock_sendall(connection, data)


async def _receive_request(connection: socket.socket) -> _Request | None:
    body, descriptors = await _receive_frame(connection)
    for descriptor in descriptors:
        socket.close(descriptor)
    return None if body is None else msgspec.json.decode(body, type=_Request)


async def _receive(connection: socket.socket) -> tuple[_Reply | None, list[int]]:
    body, descriptors = await _receive_frame(connection)
    if body is None:
        return None, descriptors
    return msgspec.json.decode(body, type=_Reply), descriptors


async def _receive_frame(connection: socket.socket) -> tuple[bytes | None, list[int]]:
    """Read one frame and the descriptors that came with it; without a whole frame there are none."""
    descriptors: list[int] = []
    body: bytes | None = None
    try:
        head = await _receive_exactly(connection, 4, descriptors)
        if head is not None:
            (length,) = struct.unpack(">I", head)
            if length > MAX_FRAME_BYTES:
                raise ConnectionError(f"frame of {length} bytes")
            body = await _receive_exactly(connection, length, descriptors)
    finally:
        if body is None:
            while descriptors:
                socket.close(descriptors.pop())
    return body, descriptors


async def _receive_exactly(connection: socket.socket, length: int, descriptors: list[int]) -> bytes | None:
    parts: list[bytes] = []
    while length > 0:
        try:
            data, received, _, _ = socket.recv_fds(connection, min(length, 1 << 20), MAX_DESCRIPTORS)
        except BlockingIOError:
            await until_readable(connection.fileno())
            continue
        except ConnectionError:
            return None
        descriptors.extend(received)
        for descriptor in received:
            os.set_inheritable(descriptor, False)  # recv_fds of Python 3.11 drops MSG_CMSG_CLOEXEC
        if not data:
            return None
        parts.append(data)
        length -= len(data)
    return b"".join(parts)


def _raise_error(reply: _Reply) -> None:
    if reply.error is None:
        return
    kind: type[Any] = error_types().get(reply.error.type, Internal)
    raise kind(reply.error.message, hint=reply.error.hint)
