"""One connection of a sandbox: read the name, check it, resolve it ourselves, connect, pass bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from ipaddress import IPv4Address

import structlog

from cloche_server import domain_names, resolvers
from cloche_server.addresses import is_always_denied
from cloche_server.config import Egress
from cloche_server.egress.client_hello import UNRECOGNIZED_NAME, NoName, read_server_name
from cloche_server.egress.flows import Flow, Flows
from cloche_server.egress.plain_request import BadRequest, PlainRequest
from cloche_wire.errors import Unavailable

FIRST_BYTES_S = 10.0
"""For the sandbox to say whom it means."""
CONNECT_S = 5.0
_TRIED = 4
_PIECE = 64 * 1024
_SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h
_HTTPS = 443

log = structlog.get_logger()


class Denied(Exception):  # noqa: N818 - an answer, not a failure
    """The connection is not made; the text says why."""


class Proxy:
    """What every connection shares."""

    def __init__(self, flows: Flows, upstream: list[str], egress: Egress) -> None:
        """Take the open connections, the name servers to ask, and the operator's exceptions."""
        self._flows = flows
        self._resolvers = upstream
        self._exceptions = egress.exceptions

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to its end."""
        own = writer.get_extra_info("socket")
        try:
            address, port = writer.get_extra_info("peername")[0], original_port(own)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with self._flows.counted(address) as flow:
                if flow is not None:
                    flow.transports.append(writer.transport)
                    await (self._tls if port == _HTTPS else self._plain)(flow, port, reader, writer)
        except (OSError, Unavailable) as error:  # of which TimeoutError is one
            log.debug("egress.connection_failed", error=str(error))
        finally:
            writer.transport.abort()

    async def _tls(
        self, flow: Flow, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        hello = b""
        try:
            async with asyncio.timeout(FIRST_BYTES_S):
                while (name := read_server_name(hello)) is None:
                    if not (piece := await reader.read(_PIECE)):
                        return
                    hello += piece
            there = await self._connect(flow, name, port)
        except (Denied, NoName) as denied:
            log.info("egress.refused", address=flow.address, reason=str(denied))
            await _last_words(writer, UNRECOGNIZED_NAME)
            return
        there[1].write(hello)
        await _splice((reader, writer), there)

    async def _plain(
        self, flow: Flow, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request = PlainRequest()
        try:
            async with asyncio.timeout(FIRST_BYTES_S):
                first = b""
                while request.host is None:
                    first += request.feed(await reader.read(_PIECE))
            there = await self._connect(flow, request.host or "", port)
        except (Denied, BadRequest) as denied:
            log.info("egress.refused", address=flow.address, reason=str(denied))
            await _last_words(writer, refusal(denied))
            return
        there[1].write(first)
        await _exchange(request, (reader, writer), there)

    async def _connect(
        self, flow: Flow, said: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a name that the sandbox said, if it may.

        Raises:
            Denied: It may not, or there is no public address behind it.
            Unavailable: The node or the name servers do not answer.
        """
        name = domain_names.normalise(said)
        if name is None:
            raise Denied(f"no name of a host: {said[:80]!r}")
        flow.name = name  # from here on a change of policy cuts it
        if not await self._flows.is_allowed(flow):
            raise Denied(f"the network policy of this sandbox does not allow: {name}")
        found = await resolvers.addresses_of(name, self._resolvers)
        reachable = [address for address in found if self._is_public(address)]
        if not reachable:
            raise Denied(f"no public address: {name}")
        for address in reachable[:_TRIED]:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(CONNECT_S):
                    # The address that was checked, not the name: a second answer could be another one.
                    there = await asyncio.open_connection(str(address), port, limit=_PIECE)
                there[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                flow.transports.append(there[1].transport)
                if flow.transports[0].is_closing():  # cut meanwhile
                    there[1].transport.abort()
                return there
        raise Denied(f"nobody answers there: {name}")

    def _is_public(self, address: IPv4Address) -> bool:
        return not is_always_denied(address, self._exceptions) and not is_own(address)


def is_own(address: IPv4Address) -> bool:
    """Whether the address is one of this machine, which no sandbox may reach: only such can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
        return True


def original_port(connection: socket.socket) -> int:
    """The port that the sandbox meant before the packet filter led it here.

    Raises:
        OSError: The connection was not led here.
    """
    # SAFETY: a sockaddr_in has 16 bytes: family, port, address, padding (ip(7)).
    _, port = struct.unpack_from(">HH", connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))
    return port


def refusal(reason: Exception) -> bytes:
    """An answer over plain HTTP."""
    status = "403 Forbidden" if isinstance(reason, Denied) else "400 Bad Request"
    text = f"{reason}\n".encode("ascii", "replace")
    fields = f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + text


_Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _last_words(writer: asyncio.StreamWriter, words: bytes) -> None:
    writer.write(words)
    with contextlib.suppress(OSError):
        async with asyncio.timeout(1.0):
            writer.close()
            await writer.wait_closed()


async def _exchange(request: PlainRequest, here: _Side, there: _Side) -> None:
    try:
        if request.wants_upgrade:
            start = b""
            while len(start) < 12 and (piece := await there[0].read(_PIECE)):
                start += piece
            here[1].write(start)
            if start.startswith(b"HTTP/1.1 101"):
                there[1].write(request.after_upgrade)
                await _splice(here, there)
                return
        async with asyncio.TaskGroup() as tasks:
            body = tasks.create_task(_send_body(request, here[0], there[1]))
            await _pump(there[0], here[1])
            body.cancel()
    except* (OSError, BadRequest) as error:
        log.debug("egress.exchange_broken", error=str(error.exceptions[0]))
    finally:
        there[1].transport.abort()
    await _last_words(here[1], b"")


async def _send_body(
    request: PlainRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while not request.is_complete:
        writer.write(request.feed(await reader.read(_PIECE)))
        await writer.drain()


async def _splice(here: _Side, there: _Side) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pump(here[0], there[1]))
            tasks.create_task(_pump(there[0], here[1]))
        await _last_words(here[1], b"")
    except* OSError as error:
        log.debug("egress.splice_broken", error=str(error.exceptions[0]))
    finally:
        there[1].transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PIECE):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()
