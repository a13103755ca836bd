"""The public socket: plain http and https on the same port, told apart by their first byte."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import resource
import signal
import socket
from typing import TYPE_CHECKING

import structlog

from cloche_server.clock import SystemClock
from cloche_server.edge import tls
from cloche_server.edge.answers import render
from cloche_server.edge.connection import HEAD_TIMEOUT_S, Connection
from cloche_server.edge.forward import Gateway
from cloche_server.edge.headers import Sender
from cloche_server.edge.idleness import IdleWatch
from cloche_server.edge.refusal import Refusal
from cloche_server.edge.route_table import RouteTable
from cloche_server.edge.signed_urls import SignedUrls
from cloche_server.edge.streams import Stream
from cloche_server.edge.waking import Waker
from cloche_server.readiness import until_readable

if TYPE_CHECKING:
    from cloche_server.config import Config

MAX_CONNECTIONS = 8192
"""Clients at once. Fewer where the limit of open files is lower: one client may need three descriptors."""
STOP_S = 2.0
"""How long requests may go on after a stop was asked for."""
_TLS_HANDSHAKE = b"\x16"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 8 << 20
"""Free memory that is kept for the next pieces. Without it each piece is received into fresh pages."""
_ACCEPT_PAUSE_S = 0.1

log = structlog.get_logger()


def run(config: Config, listener: socket.socket) -> None:
    """Serve on an inherited listening socket until SIGTERM or SIGINT.

    Args:
        config: The server's settings.
        listener: A listening TCP socket; it was made by the supervisor and outlives this process.
    """
    _keep_freed_memory()
    listener.setblocking(False)
    try:
        asyncio.run(_run(config, listener))
    finally:
        listener.close()


def _keep_freed_memory() -> None:
    """Have the allocator use large blocks again: see the agent's function of this name."""
    # SAFETY: two numbers for the allocator; it takes them or refuses them.
    with contextlib.suppress(AttributeError):  # another C library
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        allocator.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


async def _run(config: Config, listener: socket.socket) -> None:
    certificate = tls.ServerCertificate(tls.folder(config))
    edge = Edge(config, certificate, max_connections=_raise_file_limit())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, edge.stop)
    await edge.serve(listener)


class Edge:
    """The edge as one object: the route feed, the accept loop, the open connections."""

    def __init__(
        self, config: Config, certificate: tls.ServerCertificate, *, max_connections: int = MAX_CONNECTIONS
    ) -> None:
        """Nothing is opened yet.

        Args:
            config: The server's settings.
            certificate: For https; without one it is refused.
            max_connections: Clients at once.
        """
        table = RouteTable(config.edge_socket)
        self._gateway = Gateway(
            config, table, SignedUrls(table, SystemClock()), Waker(config.edge_socket, table)
        )
        self._idle_watch = IdleWatch(config.edge_socket, table)
        self._certificate = certificate
        self._max_connections = max_connections
        self._clients: dict[asyncio.Task[None], Connection | None] = {}
        self._stop = asyncio.Event()
        self._drained = asyncio.Event()

    def stop(self) -> None:
        """Have `serve` return: idle connections end at once, requests get a moment."""
        self._stop.set()

    async def serve(self, listener: socket.socket) -> None:
        """Serve clients of a non-blocking listening socket until `stop`."""
        async with asyncio.TaskGroup() as background:
            follower = background.create_task(self._gateway.table.follow())
            watch = background.create_task(self._idle_watch.run())
            async with asyncio.TaskGroup() as clients:
                acceptor = clients.create_task(self._accept(listener, clients))
                log.info("edge.started", address=str(listener.getsockname()))
                await self._stop.wait()
                acceptor.cancel()
                await self._finish()
            follower.cancel()
            watch.cancel()
        log.info("edge.stopped")

    async def _finish(self) -> None:
        for task, connection in tuple(self._clients.items()):
            if connection is None:
                task.cancel()  # it has not said anything yet
            else:
                connection.stop()
        try:
            async with asyncio.timeout(STOP_S):
                while self._clients:
                    self._drained.clear()
                    await self._drained.wait()
        except TimeoutError:
            log.info("edge.requests_cut", count=len(self._clients))
            for task in tuple(self._clients):
                task.cancel()

    async def _accept(self, listener: socket.socket, clients: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the client left already: never spin, never stop
                log.warning("edge.accept_failed", error=error.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if len(self._clients) >= self._max_connections:
                _turn_away(connection)
                continue
            task = clients.create_task(self._serve_client(connection, address[0]))
            self._clients[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._clients[task]
        self._drained.set()

    async def _serve_client(self, connection: socket.socket, address: str) -> None:
        stream = await self._open_stream(connection)
        task = asyncio.current_task()
        if stream is None or task is None:
            return
        scheme = b"https" if stream.is_tls else b"http"
        client = Connection(self._gateway, stream, Sender(address, scheme, _is_local(address)))
        self._clients[task] = client
        await client.run()

    async def _open_stream(self, connection: socket.socket) -> Stream | None:
        """Find out how the client speaks. None: it said nothing in time, or the handshake failed."""
        first = await _first_byte(connection)
        is_handshake = first == _TLS_HANDSHAKE
        context = self._certificate.context() if is_handshake else None
        if not first or (is_handshake and context is None):
            connection.close()
            return None
        patience_s = HEAD_TIMEOUT_S if context else None
        loop = asyncio.get_running_loop()
        try:
            _, stream = await loop.connect_accepted_socket(
                Stream, connection, ssl=context, ssl_handshake_timeout=patience_s
            )
        except OSError:  # a failed or late handshake; asyncio has closed the socket
            return None
        return stream


def _prepare(connection: socket.socket) -> None:
    connection.setblocking(False)
    # a peer that vanished without a word is noticed after 60 + 3 * 20 s
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


async def _first_byte(connection: socket.socket) -> bytes:
    """Return the first byte without taking it, `b""` if the client left or says nothing."""
    try:
        _prepare(connection)
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            while True:
                try:
                    return connection.recv(1, socket.MSG_PEEK)
                except BlockingIOError:
                    await until_readable(connection.fileno())
    except OSError:  # TimeoutError is one
        return b""
    except BaseException:
        connection.close()
        raise


def _turn_away(connection: socket.socket) -> None:
    connection.setblocking(False)
    refusal = Refusal(429, "too many connections", fields=((b"Retry-After", b"1"),))
    try:
        connection.send(render(refusal, None, closes=True))
    except OSError:
        pass
    finally:
        connection.close()


def _is_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _raise_file_limit() -> int:
    """Use all descriptors this process may have; return how many clients fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return (
        max(64, min(MAX_CONNECTIONS, (soft - 64) // 3)) if soft != resource.RLIM_INFINITY else MAX_CONNECTIONS
    )
