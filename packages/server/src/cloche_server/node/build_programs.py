"""Run programs in a sandbox of a build, and bring files into it: as a client of its agent.

The sandbox has run the template's code, so all that comes from it is hostile: bounded in size and time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple
from urllib.parse import quote

import h11

from cloche_server.node import agent_link, threads
from cloche_wire import connect, proto_json
from cloche_wire.errors import DeadlineExceeded, Internal
from cloche_wire.messages import process as wire

_MESSAGE_BYTES = 1 << 20
_READ_BYTES = 65_536
_SILENCE_S = 1
"""After that much of it the agent says that it is there, so that whoever listens can look around."""
_PATIENCE_S = 30.0
"""Beyond the command's own time, and for a sign of life."""


class Agent(NamedTuple):
    """Where an agent answers, and the token that opens it."""

    address: str
    token: str


class Program(NamedTuple):
    """What to run."""

    argv: tuple[str, ...]
    user: str
    workdir: str
    """Empty: the user's home."""
    env: dict[str, str]
    timeout_s: float


class Ended(NamedTuple):
    """How it ended."""

    status: int
    """128 and more for one that a signal has ended."""


class Output(NamedTuple):
    """What it has written; nothing in a moment of silence."""

    stdout: bytes = b""
    stderr: bytes = b""


async def run(agent: Agent, program: Program) -> AsyncGenerator[Output | Ended, None]:
    """Run a program; what it writes as it comes, at least one item a second, and at last how it ended.

    Raises:
        ClocheError: What the agent refuses with: no such user, no such folder.
        DeadlineExceeded: It took too long, and was ended.
        Internal: The agent is gone, or talks nonsense.
    """
    config = wire.ProcessConfig(program.argv[0], list(program.argv[1:]), program.env, program.workdir or None)
    message = connect.encode_envelope(0, proto_json.encode(wire.StartRequest(process=config, stdin=False)))
    headers = [
        ("content-type", connect.STREAM_JSON),
        ("authorization", f"Basic {base64.b64encode(f'{program.user}:'.encode()).decode()}"),
        (connect.TIMEOUT_HEADER, str(round(1000 * program.timeout_s))),
        ("keepalive-ping-interval", str(_SILENCE_S)),
        ("content-length", str(len(message))),
    ]
    try:
        async with asyncio.timeout(program.timeout_s + _PATIENCE_S):
            async with _asked(agent, "POST", wire.START.path, headers, _once(message)) as (status, body):
                if status != 200:
                    raise Internal(f"the agent refused to run a program: status {status}")
                async with aclosing(_events(body)) as events:
                    async for event in events:
                        yield event
    except TimeoutError as error:
        raise DeadlineExceeded(f"it took longer than {program.timeout_s:g} s") from error


async def _events(body: AsyncIterator[bytes]) -> AsyncGenerator[Output | Ended, None]:
    decoder = connect.EnvelopeDecoder(_MESSAGE_BYTES)
    ended: Ended | None = None
    async for piece in body:
        for envelope in decoder.feed(piece):
            if envelope.is_end:
                if (error := connect.read_end_stream(envelope.data)) is not None:
                    raise error
                if ended is not None:
                    yield ended
                    return
                continue
            event = proto_json.decode(wire.StartResponse, envelope.data).event
            if event is None:
                continue
            if event.end is not None:
                ended = Ended(_status(event.end))
            elif event.data is not None:
                yield Output(event.data.stdout or b"", event.data.stderr or b"")
            elif event.keepalive is not None:
                yield Output()
    raise Internal("the sandbox ended")


def _status(end: wire.EndEvent) -> int:
    return end.exit_code if end.exited else 128 + (end.exit_code if 0 < end.exit_code < 128 else 9)


async def upload(agent: Agent, descriptor: int, size: int, path: str) -> None:
    """Write what a descriptor holds, from its beginning, to a file of the sandbox's root.

    Raises:
        Internal: It cannot be written, or the agent is gone.
    """

    async def pieces() -> AsyncIterator[bytes]:
        offset = 0
        while offset < size:
            piece = await threads.in_thread(os.pread, descriptor, min(1 << 20, size - offset), offset)
            if not piece:
                raise Internal("the upload became shorter while it was read")
            offset += len(piece)
            yield piece

    headers = [("content-type", "application/octet-stream"), ("content-length", str(size))]
    target = f"/files?username=root&path={quote(path, safe='')}"
    async with _asked(agent, "POST", target, headers, pieces()) as (status, body):
        text = b"".join([piece async for piece in body])
    if status != 200:
        raise Internal(f"the agent refused a file: status {status}: {text[:500].decode(errors='replace')}")


async def _once(message: bytes) -> AsyncIterator[bytes]:
    yield message


@asynccontextmanager
async def _asked(
    agent: Agent, method: str, target: str, headers: list[tuple[str, str]], sent: AsyncIterator[bytes]
) -> AsyncGenerator[tuple[int, AsyncIterator[bytes]]]:
    """Ask once; the status, and the body as it comes."""
    try:
        reader, writer = await agent_link.connect(agent.address)
    except OSError as error:
        raise Internal(f"the agent cannot be reached: {error}") from error
    connection = h11.Connection(h11.CLIENT)
    fixed = [("host", "agent"), ("x-access-token", agent.token)]
    try:
        head = h11.Request(method=method, target=target, headers=[*fixed, *headers])
        writer.write(connection.send(head) or b"")
        async for piece in sent:
            writer.write(connection.send(h11.Data(data=piece)) or b"")
            await writer.drain()
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        response = await _next(connection, reader)
        if not isinstance(response, h11.Response):
            raise Internal("the agent does not answer")
        yield response.status_code, _body(connection, reader)
    except (OSError, h11.RemoteProtocolError) as error:
        raise Internal(f"the sandbox ended: {error}") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _body(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while isinstance(event := await _next(connection, reader), h11.Data):
        yield bytes(event.data)


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        async with asyncio.timeout(_PATIENCE_S):
            connection.receive_data(await reader.read(_READ_BYTES))
    return event
