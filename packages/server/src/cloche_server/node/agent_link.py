"""The node's requests to a sandbox's agent: to tell it who it is, and to ask what has happened.

The agent is hostile input: its answers are bounded in size and time.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import h11
import msgspec

from cloche_wire.errors import Internal

_MAX_ANSWER_BYTES = 64 * 1024
MAX_LOGS_BYTES = 512 * 1024


class AgentInit(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `POST /init` (wire contract 3.1, with our own fields)."""

    access_token: str
    env_vars: dict[str, str]
    default_user: str
    default_workdir: str
    sandbox_id: str
    template_id: str
    cpu_count: int
    memory_mib: int


class AgentPreparation(msgspec.Struct, frozen=True, rename="camel"):
    """Body of our own `POST /prepare`."""

    env_vars: dict[str, str]
    """Of the template."""
    imports: tuple[str, ...]
    """Python modules that its first context imports."""


async def prepare(path: Path, body: AgentPreparation, *, timeout_s: float) -> None:
    """Have an agent that is nobody's yet start its interpreter. Returns when that is ready, or cannot be.

    Raises:
        Internal: It answered with another status than 204, with something else than HTTP, or not in time.
    """
    await _tell(path, "/prepare", body, timeout_s)


async def initialize(path: Path, body: AgentInit, *, timeout_s: float) -> None:
    """Give a freshly started agent its identity. Returns when it has answered: the sandbox is ready then.

    The listening socket exists before the agent does, so the connection waits in its queue and no polling
    is needed.

    Raises:
        Internal: It answered with another status than 204, with something else than HTTP, or not in time.
    """
    await _tell(path, "/init", body, timeout_s)


async def _tell(path: Path, target: str, body: AgentInit | AgentPreparation, timeout_s: float) -> None:
    headers = [("content-type", "application/json")]
    request = _Request("POST", target, headers, msgspec.json.encode(body))
    answer = await _ask(path, request, _MAX_ANSWER_BYTES, timeout_s)
    if answer.status != 204:
        raise Internal(f"the agent refused {target}: status {answer.status}")


async def fetch_logs(path: Path, access_token: str, since_ms: int, *, timeout_s: float) -> bytes:
    """Ask an agent for what has happened in its sandbox; the caller trusts nothing in the answer.

    Raises:
        Internal: No answer, none in time, too long a one, or a refusal.
    """
    request = _Request("GET", f"/logs?since={since_ms}", [("x-access-token", access_token)])
    answer = await _ask(path, request, MAX_LOGS_BYTES, timeout_s)
    if answer.status != 200:
        raise Internal(f"the agent refused its logs: status {answer.status}")
    return answer.body


class _Request(NamedTuple):
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""


class _Answer(NamedTuple):
    status: int
    body: bytes


async def _ask(path: Path, request: _Request, max_answer_bytes: int, timeout_s: float) -> _Answer:
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(path, request, max_answer_bytes)
    except TimeoutError as error:
        raise Internal(f"the agent did not answer in {timeout_s:.3g} s") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise Internal(f"the agent cannot be reached: {error}") from error


async def _exchange(path: Path, request: _Request, max_answer_bytes: int) -> _Answer:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [("host", "agent"), *request.headers, ("content-length", str(len(request.body)))]
        for event in (
            h11.Request(method=request.method, target=request.target, headers=headers),
            h11.Data(data=request.body),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        status = received = 0
        parts: list[bytes] = []
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return _Answer(status, b"".join(parts))
            elif event is h11.NEED_DATA:
                data = await reader.read(65_536)
                received += len(data)
                if (not data and not status) or received > max_answer_bytes:
                    raise ConnectionResetError("it closed the connection")
                connection.receive_data(data)
    finally:
        writer.close()
