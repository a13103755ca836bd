"""Connections to what stands behind the edge: the api, the agents, and the ports that users open."""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from cloche_server import link
from cloche_server.edge.lasting import LastingStream
from cloche_server.edge.refusal import PORT_CLOSED, Refusal, sandbox_not_found
from cloche_server.edge.streams import Stream
from cloche_server.node.messages import Dial
from cloche_wire.errors import ClocheError, PortClosed, SandboxNotFound, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    import msgspec

    from cloche_server.edge.route_table import RouteTable
    from cloche_server.node.messages import Route

API_PATIENCE_S = 2.0
"""How long a request waits for an api that is being restarted."""
NODE_PATIENCE_S = 5.0
"""How long a request for a user port or a paused sandbox waits for a node that is being restarted."""
DIAL_TIMEOUT_S = 10.0
ENDING_S = 1.0
"""How long the node may take to say that a sandbox is gone whose agent no longer listens."""
SEND_BUFFER_BYTES = 256 * 1024
"""The kernel doubles it: a piece as it is received (256 KiB) leaves at once then. Of its own 208 KiB the rest
of each would be copied, and wait for another turn of the event loop."""
_RETRY_S = 0.02
_TLS_OPTIONS: dict[str, Any] = {"server_hostname": "", "ssl_handshake_timeout": 10.0}
"""No server name is sent: the service is meant by its port."""


async def connect_service(path: Path) -> Stream:
    """Connect to a process of the server itself: the control plane, or the content of volumes.

    Raises:
        Refusal: 503, it does not answer. Nothing was sent, so the request may be repeated.
    """
    try:
        return await _connect_unix(str(path), patience_s=API_PATIENCE_S)
    except OSError as error:
        raise Refusal(503, "the control plane does not answer", fields=((b"Retry-After", b"1"),)) from error


async def connect_agent(address: str, route: Route, table: RouteTable) -> Stream:
    """Connect to a service of a sandbox's agent.

    Args:
        address: The path of a Unix socket, or `address:port`: then it may be cut by a checkpoint, and lasts.
        route: Whose.
        table: Tells whether it is there.

    Raises:
        Refusal: 502, the agent is gone: it is the first process of its sandbox, so the sandbox is gone too.
    """
    try:
        if address.startswith("/"):
            return await _connect_unix(address, patience_s=0)
        lasting = LastingStream(partial(_connect_tcp, address), route.access_token)
        return await _connect_tcp(address, lasting)
    except OSError as error:
        await table.wait_for(lambda: not table.is_live(route.sandbox_id), ENDING_S)
        raise sandbox_not_found(route.sandbox_id) from error


async def connect_port(edge_socket: Path, sandbox_id: str, port: int, *, by_tls: bool) -> Stream:
    """Connect to a port inside a sandbox, through a connection that the node makes there.

    Args:
        edge_socket: The node's.
        sandbox_id: Whose port.
        port: Which.
        by_tls: Whether the service there speaks TLS (`network.httpsPorts`).

    Raises:
        Refusal: 502, the sandbox is gone, nothing listens, or what listens speaks no TLS; 503, the node does
        not answer.
    """
    try:
        _, descriptors = await ask_node(edge_socket, "dial", Dial(sandbox_id, port), timeout_s=DIAL_TIMEOUT_S)
        if not descriptors:
            raise Unavailable("the node passed no connection")
    except SandboxNotFound as error:
        raise sandbox_not_found(sandbox_id) from error
    except PortClosed as error:
        raise Refusal(502, PORT_CLOSED, sandbox_id, port) from error
    except TimeoutError as error:
        raise Refusal(504, "The port did not answer in time", sandbox_id, port) from error
    except ClocheError as error:
        raise Refusal(503, "The sandbox cannot be reached at the moment", sandbox_id, port) from error
    # SAFETY: the descriptor came from our own node over a socket that only this user and root can open; it is
    # owned here from now on and closed with the stream.
    connection = socket.socket(fileno=descriptors[0])
    for surplus in descriptors[1:]:
        socket.close(surplus)
    if not by_tls:
        return await _adopt(connection)
    try:
        return await _adopt(connection, _unverified())
    except OSError as error:  # of which ssl.SSLError is one
        raise Refusal(502, "The port does not speak TLS", sandbox_id, port) from error


async def ask_node(
    edge_socket: Path, method: str, params: object, *, timeout_s: float
) -> tuple[msgspec.Raw, list[int]]:
    """Return the node's answer and the descriptors with it; one that is being restarted is waited for.

    Raises:
        ClocheError: Whatever the node raised.
        TimeoutError: No answer in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + NODE_PATIENCE_S
    while True:
        try:
            return await link.call_for_descriptors(edge_socket, method, params, timeout_s=timeout_s)
        except Unavailable:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(_RETRY_S)


async def _connect_unix(path: str, *, patience_s: float) -> Stream:
    """Connect, or go on trying for a while.

    A full backlog is no refusal: connect(2) says EAGAIN then and leaves the socket unconnected, which
    asyncio's own `sock_connect` takes for "in progress".
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    backlog_deadline = loop.time() + DIAL_TIMEOUT_S
    while True:
        connection = _new_socket(socket.AF_UNIX)
        try:
            connection.connect(path)
            return await _adopt(connection)
        except OSError as error:
            connection.close()
            if loop.time() >= (backlog_deadline if isinstance(error, BlockingIOError) else deadline):
                raise
        except BaseException:
            connection.close()
            raise
        await asyncio.sleep(_RETRY_S)


async def _connect_tcp(address: str, stream: Stream | None = None) -> Stream:
    host, _, port = address.rpartition(":")
    connection = _new_socket(socket.AF_INET)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A sandbox that has just gone refuses nothing: its whole network has gone with it.
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
        return await _adopt(connection, stream=stream)
    except BaseException:
        connection.close()
        raise


def _new_socket(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return made


@cache
def _unverified() -> ssl.SSLContext:
    """For services inside sandboxes: their certificates prove nothing that the way there does not.

    The connection ends in the sandbox's own network, which nobody else can answer in.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Simple servers end TLS by ending the connection; an answer without a length would then be broken off.
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


async def _adopt(
    connection: socket.socket, tls: ssl.SSLContext | None = None, stream: Stream | None = None
) -> Stream:
    connection.setblocking(False)
    options = {} if tls is None else _TLS_OPTIONS
    try:
        _, stream = await asyncio.get_running_loop().create_connection(
            lambda: stream or Stream(), sock=connection, ssl=tls, **options
        )
    except BaseException:
        connection.close()
        raise
    return stream
