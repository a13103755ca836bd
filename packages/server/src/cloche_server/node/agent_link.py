"""The node's requests to a sandbox's agent: to tell it who it is, and to ask what has happened.

The agent is hostile input: its answers are bounded in size and time.
"""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

import h11
import msgspec

from cloche_wire.errors import Internal

_MAX_ANSWER_BYTES = 64 * 1024
_MAX_HEAD_BYTES = 4096
MAX_LOGS_BYTES = 512 * 1024
_POLL_S = 0.005


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
    hostname: str = ""
    """Empty: it has one by now."""
    etc_files: dict[str, str] = {}
    """Files below /etc that are this sandbox's own, by name; those that are missing stay as they are."""
    start_cmd: str = ""
    """What the template has run in each of its sandboxes: started now, unless it was."""
    ready_cmd: str = ""
    """Succeeds once that is so far."""
    restored: bool = False
    """It was on disk: what copies of it must not have in common is made anew, before the answer."""


class AgentPreparation(msgspec.Struct, frozen=True, rename="camel"):
    """Body of our own `POST /prepare`."""

    env_vars: dict[str, str]
    """Of the template."""
    imports: tuple[str, ...]
    """Python modules that its first context imports."""
    default_user: str
    default_workdir: str
    start_cmd: str = ""
    """Started before the answer; see `until_ready`."""
    ready_cmd: str = ""
    """Succeeds once that is so far."""
    hostname: str = ""
    etc_files: dict[str, str] = {}
    restored: bool = False
    """These three as in `AgentInit`."""


async def prepare(address: str, body: AgentPreparation, *, timeout_s: float) -> None:
    """Have an agent that is nobody's yet start its interpreter and its start command.

    Returns when the first is ready, or cannot be, and the second runs.

    Raises:
        Internal: It answered with another status than 204, with something else than HTTP, or not in time.
    """
    await _tell(address, "/prepare", body, "", timeout_s)


async def until_up(address: str, *, timeout_s: float) -> None:
    """Wait until an agent answers.

    Raises:
        Internal: It does not in time, or with something else than HTTP and 204.
    """
    answer = await _ask(address, _Request("GET", "/health", []), _MAX_ANSWER_BYTES, timeout_s)
    if answer.status != 204:
        raise Internal(f"the agent is not well: status {answer.status}")


async def until_ready(address: str, access_token: str, *, timeout_s: float) -> None:
    """Wait until the start command of a sandbox is ready; at once where it has none, or was ready before.

    Args:
        address: Where its agent answers.
        access_token: Empty for one that is nobody's.
        timeout_s: For all of it.

    Raises:
        Internal: The start command failed, it was not ready in time, or the agent does not answer.
    """
    request = _Request("POST", "/ready", [("x-access-token", access_token)] if access_token else [])
    answer = await _ask(address, request, _MAX_ANSWER_BYTES, timeout_s)
    if answer.status != 204:
        raise Internal(f"the start command is not ready: status {answer.status} of the agent")


async def initialize(address: str, body: AgentInit, *, known_token: str = "", timeout_s: float) -> None:
    """Give an agent its identity. Returns when it has answered: the sandbox is ready then.

    Args:
        address: Where it answers, or will: see `Machine.agent_address`.
        body: What it is told.
        known_token: The token that it goes by until then; empty for one that is nobody's.
        timeout_s: For all of it.

    Raises:
        Internal: It answered with another status than 204, with something else than HTTP, or not in time.
    """
    await _tell(address, "/init", body, known_token, timeout_s)


async def quiesce(address: str, access_token: str, *, timeout_s: float) -> None:
    """Have every process of a sandbox but its agent end, as a reboot would.

    Raises:
        Internal: No answer, none in time, or a refusal.
    """
    await _tell(address, "/quiesce", None, access_token, timeout_s)


async def relieve(address: str, access_token: str, *, timeout_s: float) -> None:
    """Have the process of a sandbox end that uses the most memory.

    Raises:
        Internal: No answer, none in time, or a refusal: there is none, or the agent is older than this path.
    """
    await _tell(address, "/relieve", None, access_token, timeout_s)


async def forward(connection: socket.socket, access_token: str, port: int) -> None:
    """Have an agent lead a connection to it on to a port on its 127.0.0.1; what follows is that port's.

    Raises:
        Internal: It refuses, or answers with something else than HTTP.
        OSError: The connection breaks.
    """
    loop = asyncio.get_running_loop()
    head = f"GET /forward/{port} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    await loop.sock_sendall(connection, f"{head}X-Access-Token: {access_token}\r\n\r\n".encode())
    answer = b""
    # Byte by byte: what comes after the head is the service's, and not for us.
    while not answer.endswith(b"\r\n\r\n"):
        piece = await loop.sock_recv(connection, 1)
        answer += piece
        if not piece or len(answer) > _MAX_HEAD_BYTES:
            raise Internal("the agent broke off")
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise Internal("the agent refused to lead on")


async def _tell(
    address: str, target: str, body: AgentInit | AgentPreparation | None, token: str, timeout_s: float
) -> None:
    headers = [("x-access-token", token)] if token else []
    text = b""
    if body is not None:
        headers.append(("content-type", "application/json"))
        text = msgspec.json.encode(body)
    request = _Request("POST", target, headers, text)
    answer = await _ask(address, request, _MAX_ANSWER_BYTES, timeout_s)
    if answer.status != 204:
        raise Internal(f"the agent refused {target}: status {answer.status}")


async def fetch_logs(address: str, access_token: str, since_ms: int, *, timeout_s: float) -> bytes:
    """Ask an agent for what has happened in its sandbox; the caller trusts nothing in the answer.

    Raises:
        Internal: No answer, none in time, too long a one, or a refusal.
    """
    request = _Request("GET", f"/logs?since={since_ms}", [("x-access-token", access_token)])
    answer = await _ask(address, request, MAX_LOGS_BYTES, timeout_s)
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


async def _ask(address: str, request: _Request, max_answer_bytes: int, timeout_s: float) -> _Answer:
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(await connect(address), request, max_answer_bytes)
    except TimeoutError as error:
        raise Internal(f"the agent did not answer in {timeout_s:.3g} s") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise Internal(f"the agent cannot be reached: {error}") from error


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to an agent that may be just starting.

    A Unix socket listens before its agent does, and the connection waits there. In a network of the sandbox's
    own nobody listens until the agent does.
    """
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address)
    host, _, port = address.rpartition(":")
    while True:
        try:
            return await asyncio.open_connection(host, int(port))
        except ConnectionRefusedError:
            await asyncio.sleep(_POLL_S)


async def _exchange(
    way: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: _Request, max_answer_bytes: int
) -> _Answer:
    reader, writer = way
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
