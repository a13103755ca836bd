"""The node's one request to a sandbox's agent: who it is and what it may tell to whom.

The agent is hostile input: its answer is bounded in size and time, and nothing but its status is read.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import h11
import msgspec

from cloche_wire.errors import Internal

_MAX_ANSWER_BYTES = 64 * 1024


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


async def initialize(path: Path, body: AgentInit, *, timeout_s: float) -> None:
    """Give a freshly started agent its identity. Returns when it has answered: the sandbox is ready then.

    The listening socket exists before the agent does, so the connection waits in its queue and no polling
    is needed.

    Raises:
        Internal: It answered with another status than 204, with something else than HTTP, or not in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            status = await _post(path, msgspec.json.encode(body))
    except TimeoutError as error:
        raise Internal(f"the agent did not answer in {timeout_s:.0f} s") from error
    except (OSError, h11.RemoteProtocolError) as error:
        raise Internal(f"the agent cannot be reached: {error}") from error
    if status != 204:
        raise Internal(f"the agent refused its identity: status {status}")


async def _post(path: Path, body: bytes) -> int:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [
            ("host", "agent"),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
        ]
        for event in (
            h11.Request(method="POST", target="/init", headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        received = 0
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                return event.status_code
            if event is h11.NEED_DATA:
                data = await reader.read(4096)
                received += len(data)
                if not data or received > _MAX_ANSWER_BYTES:
                    raise ConnectionResetError("it closed the connection")
                connection.receive_data(data)
    finally:
        writer.close()
