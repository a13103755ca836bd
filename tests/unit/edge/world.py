"""An edge on a loopback port, with a node, an api and sandboxes that exist only here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from cloche_server import link
from cloche_server.config import Config
from cloche_server.edge import tls
from cloche_server.edge.listener import Edge
from cloche_server.node.messages import Dial, IdleSandbox, LookAgain, Route, RouteGone, Wake
from cloche_wire.errors import ClocheError, PortClosed, SandboxNotFound

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

DAEMON, INTERPRETER = 49983, 49999


class World:
    """Everything around one edge, and ways to talk to it."""

    def __init__(self, folder: Path) -> None:
        self.config = Config(state=str(folder), domain="cloche.localhost:3000")
        self.config.run_dir.mkdir(mode=0o700)
        self.routes: dict[str, Route] = {}
        self.ports: dict[tuple[str, int], Serve] = {}
        self.dials: list[Dial] = []
        self.wakes: list[str] = []
        self.idle_words: list[IdleSandbox] = []
        self.wake_asked = asyncio.Event()
        self.wake_gate: asyncio.Event | None = None
        """A wake waits for it."""
        self.fails_wake: ClocheError | None = None
        self.seen: list[bytes] = []
        self.edge = Edge(self.config, tls.ServerCertificate(tls.folder(self.config)))
        self.address: tuple[str, int] = ("", 0)
        self._feeds: set[asyncio.Queue[link.Event]] = set()
        self._servers = contextlib.AsyncExitStack()
        self._sandbox_servers: dict[str, list[asyncio.Server]] = {}
        self._inner: set[asyncio.Server] = set()

    # --- the node ---

    async def handle(self, method: str, params: msgspec.Raw) -> link.Answer:
        if method == "routes":
            feed: asyncio.Queue[link.Event] = asyncio.Queue()
            self._feeds.add(feed)
            return link.Answer(list(self.routes.values()), events=self._events(feed))
        if method == "idle":
            self.idle_words.append(msgspec.json.decode(params, type=IdleSandbox))
            return link.Answer(LookAgain(60))
        if method == "wake":
            return link.Answer(await self._wake(msgspec.json.decode(params, type=Wake).sandbox_id))
        dial = msgspec.json.decode(params, type=Dial)
        self.dials.append(dial)
        if dial.sandbox_id not in self.routes:
            raise SandboxNotFound("no such sandbox")
        serve = self.ports.get((dial.sandbox_id, dial.port))
        if serve is None:
            raise PortClosed(f"port is not open: {dial.port}")
        return link.Answer({}, (await self._connect(serve),))

    async def _wake(self, sandbox_id: str) -> Route:
        self.wakes.append(sandbox_id)
        self.wake_asked.set()
        if self.wake_gate is not None:
            await self.wake_gate.wait()
        if self.fails_wake is not None:
            raise self.fails_wake
        if sandbox_id not in self.routes:
            raise SandboxNotFound("no such sandbox")
        return self.turn(sandbox_id)

    def turn(
        self, sandbox_id: str, *, is_paused: bool = False, is_frozen: bool = False, is_idle: bool = False
    ) -> Route:
        """Have a sandbox paused, frozen, or running again, and say so."""
        self.routes[sandbox_id] = msgspec.structs.replace(
            self.routes[sandbox_id], is_paused=is_paused, is_frozen=is_frozen, is_idle=is_idle
        )
        self.announce(self.routes[sandbox_id])
        return self.routes[sandbox_id]

    async def _events(self, feed: asyncio.Queue[link.Event]) -> AsyncIterator[link.Event]:
        while True:
            yield await feed.get()

    async def _connect(self, serve: Serve) -> int:
        """Return a connected TCP descriptor whose other end is served here."""
        server = await asyncio.start_server(self.recorded(serve), "127.0.0.1", 0)
        self._inner.add(server)
        connection = socket.create_connection(server.sockets[0].getsockname())
        return connection.detach()

    def recorded(self, serve: Serve) -> Serve:
        """Close the writer when the service returns."""

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        return run

    async def add_sandbox(
        self, sandbox_id: str, *, announce: bool = True, by_tcp: bool = False, **more: Any
    ) -> Route:
        """Have a sandbox with both its services; they are `echo` unless replaced in `ports`."""
        addresses: dict[int, str] = {}
        for port in (DAEMON, INTERPRETER):
            serve = self.recorded(self.ports.get((sandbox_id, port), self.echo))
            if by_tcp:
                server = await asyncio.start_server(serve, "127.0.0.1", 0)
                addresses[port] = "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
            else:
                addresses[port] = str(self.config.run_dir / f"{sandbox_id}.{port}")
                server = await asyncio.start_unix_server(serve, addresses[port])
            self._sandbox_servers.setdefault(sandbox_id, []).append(server)
        more.setdefault("access_token", f"token-of-{sandbox_id}")
        route = Route(sandbox_id, addresses[DAEMON], addresses[INTERPRETER], **more)
        self.routes[sandbox_id] = route
        if announce:
            self.announce(route)
        return route

    def announce(self, route: Route) -> None:
        for feed in self._feeds:
            feed.put_nowait(link.Event("route", route))

    def end_sandbox(self, sandbox_id: str, *, announce: bool = True, is_paused: bool = False) -> None:
        """Have a sandbox die, or be paused: nobody listens any more, and the node says so."""
        route = self.routes.pop(sandbox_id)
        for address in (route.agent_address, route.interpreter_address):
            Path(address).unlink(missing_ok=True)
        for server in self._sandbox_servers.pop(sandbox_id, []):
            server.close()
        if announce:
            for feed in self._feeds:
                feed.put_nowait(link.Event("gone", RouteGone(sandbox_id, is_paused)))

    # --- services ---

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer with the request as it came."""
        request = await self.read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(request), request))
        await writer.drain()

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        """Return one request as its bytes, noted in `seen`."""
        head = await reader.readuntil(b"\r\n\r\n")
        body = b""
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            while not body.endswith(b"0\r\n\r\n"):
                body += await reader.readuntil(b"\r\n")
        elif b"content-length: " in lower:
            body = await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
        self.seen.append(head + body)
        return head + body

    # --- the client ---

    async def ask(self, request: bytes) -> bytes:
        """Send bytes, return all that comes back until the connection ends."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def get(
        self, host: str, path: str = "/", *fields: str, method: str = "GET", body: bytes = b""
    ) -> bytes:
        """Make one plain request on a fresh connection."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return await self.ask("\r\n".join([*lines, "", ""]).encode() + body)

    # --- life ---

    @contextlib.asynccontextmanager
    async def running(self, *, node: bool = True, api: bool = True) -> AsyncGenerator[World, None]:
        """Run the edge, and by default the node and an echoing api."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.address = listener.getsockname()
        async with asyncio.TaskGroup() as tasks:
            api_server = (
                await asyncio.start_unix_server(self.recorded(self.echo), self.config.api_socket)
                if api
                else None
            )
            node_task = tasks.create_task(self.serve_node()) if node else None
            edge_task = tasks.create_task(self.edge.serve(listener))
            try:
                yield self
            finally:
                self.edge.stop()
                await edge_task
                for feed in self._feeds:
                    feed.put_nowait(link.Event("route", None))
                if node_task is not None:
                    node_task.cancel()
                for server in [
                    api_server,
                    *self._inner,
                    *(s for many in self._sandbox_servers.values() for s in many),
                ]:
                    if server is not None:
                        server.close()
                listener.close()

    async def serve_node(self) -> None:
        listener = link.listen(self.config.edge_socket, owner_uid=os.getuid())
        try:
            await link.serve(listener, self.handle)
        finally:
            listener.close()
