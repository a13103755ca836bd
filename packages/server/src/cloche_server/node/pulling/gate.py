"""The only way out of the network that an image is fetched in: a proxy that looks at where connections lead.

It runs as a user without rights, and ends with the program that it serves. It sees no content:
what goes through is encrypted, except to registries that the operator has named for it.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 # pyright: ignore[reportUnusedImport] - resolving needs it, when there is no way to it any more
import ipaddress
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from cloche_server.addresses import is_always_denied

_HEAD_BYTES = 64 * 1024
_PIECE_BYTES = 1 << 18
_CONNECT_TIMEOUT_S = 15.0
_HTTP_PORT, _HTTPS_PORT = 80, 443


class Rules(msgspec.Struct, frozen=True):
    """What may go through."""

    exceptions: tuple[str, ...] = ()
    """IPv4 networks that may be reached although they are private."""
    trusted: tuple[str, ...] = ()
    """Hosts, maybe with a port, that the operator has named: wherever they are."""
    doors: tuple[int, ...] = ()
    """Ports of this machine's loopback that are shown as they are: no program asks a proxy for those."""
    proxies: dict[str, str] = {}
    """How this machine reaches the world, where it does so by a proxy: `https_proxy`, `no_proxy`."""
    max_bytes: int = 10 << 30


class Problem(msgspec.Struct, frozen=True):
    """Why something did not go through; the last one counts."""

    kind: str
    """`refused`, `unreachable` or `too_large`."""
    reason: str


class _Target(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Refused(Exception):  # noqa: N818 - carried to the one place that tells it
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.problem = Problem(kind, reason)


class Gate:
    """Connections of one program."""

    def __init__(self, rules: Rules) -> None:
        """Let nothing through yet."""
        self._rules = rules
        self._left_bytes = rules.max_bytes
        self.problem: Problem | None = None

    async def serve(self, proxy: socket.socket, doors: Iterable[socket.socket]) -> None:
        """Take connections on these sockets until cancelled."""
        async with asyncio.TaskGroup() as tasks:

            async def take(listener: socket.socket, port: int | None) -> None:
                while True:
                    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                    tasks.create_task(self._client(connection, port))

            tasks.create_task(take(proxy, None))
            for door in doors:
                tasks.create_task(take(door, door.getsockname()[1]))

    async def _client(self, connection: socket.socket, port: int | None) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=_HEAD_BYTES)
        try:
            if port is not None:
                there = await self._connect(_Target("127.0.0.1", port), checked=False)
            else:
                there = await self._asked(reader, writer)
            await self._splice((reader, writer), there)
        except _Refused as refused:
            self.problem = refused.problem
            with suppress(OSError):
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                await writer.drain()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass  # it went away, or speaks no HTTP: it is the one that knows why it failed
        finally:
            writer.close()

    async def _asked(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Read what a proxy is asked, and be where it leads."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        method, target, version = line.decode("ascii").split(" ")
        if method == "CONNECT":
            there = await self._connect(_split(target, _HTTPS_PORT))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.drain()
            return there
        # Plain HTTP, of a registry that the operator has named for it. One request for each connection, so
        # that the next one is looked at too.
        url = urlsplit(target)
        there = await self._connect(_Target(url.hostname or "", url.port or _HTTP_PORT))
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        fields = [
            field
            for field in rest.split(b"\r\n")
            if field and not field.lower().startswith((b"connection:", b"proxy-"))
        ]
        asked = [f"{method} {path} {version}".encode(), *fields, b"connection: close", b"", b""]
        there[1].write(b"\r\n".join(asked))
        return there

    async def _connect(
        self, target: _Target, *, checked: bool = True
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                proxy = self._rules.proxies.get("https_proxy", "")
                if checked and proxy and not self._is_direct(target.host):
                    return await self._connect_by(proxy, target)
                return await self._connect_directly(target, checked=checked)
        except TimeoutError as error:
            raise _Refused("unreachable", f"{target}: no answer in {_CONNECT_TIMEOUT_S:g} s") from error
        except (OSError, EOFError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise _Refused("unreachable", f"{target}: {reason or error}") from error

    async def _connect_directly(
        self, target: _Target, *, checked: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [one for one in addresses if not checked or self._may(target, one)]
        if not allowed:
            raise _Refused("refused", f"{target} is {', '.join(addresses[:4])}")
        failure: OSError | None = None
        for address in allowed:
            try:
                # The address that was looked at, not the name: its answer may be another one by now.
                return await asyncio.open_connection(address, target.port)
            except OSError as error:
                failure = error
        raise failure or OSError("no address")

    async def _connect_by(
        self, proxy: str, target: _Target
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Through the machine's own proxy, which resolves names: only an address can be looked at here."""
        with suppress(ValueError):
            address = str(ipaddress.ip_address(target.host))
            if not self._may(target, address):
                raise _Refused("refused", f"{target} is {address}")
        url = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
        reader, writer = await asyncio.open_connection(url.hostname or "", url.port or _HTTP_PORT)
        writer.write(f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0].decode("ascii", "replace")
        if answer.split(" ")[1:2] != ["200"]:
            writer.close()
            raise _Refused("unreachable", f"{target}: the proxy says {answer[:200]}")
        return reader, writer

    def _is_direct(self, host: str) -> bool:
        names = [name.strip().lstrip(".") for name in self._rules.proxies.get("no_proxy", "").split(",")]
        return any(name == "*" or host == name or host.endswith(f".{name}") for name in names if name)

    def _may(self, target: _Target, address: str) -> bool:
        if {target.host, str(target)} & set(self._rules.trusted):
            return True
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv4Address):
            return not is_always_denied(found, self._rules.exceptions)
        return found.is_global and found.ipv4_mapped is None

    async def _splice(
        self,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(here[0], there[1], counted=False))
                tasks.create_task(self._pump(there[0], here[1], counted=True))
        except* OSError:
            pass  # one side went away: the other one sees its end
        finally:
            there[1].close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        while piece := await reader.read(_PIECE_BYTES):
            if counted:
                self._left_bytes -= len(piece)
                if self._left_bytes < 0:
                    self.problem = Problem("too_large", f"more than {self._rules.max_bytes >> 20} MiB")
                    raise ConnectionAbortedError  # whatever else it asks for: nothing comes any more
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _split(target: str, port: int) -> _Target:
    host, _, number = target.rpartition(":")
    if not host:
        return _Target(target, port)
    return _Target(host.strip("[]"), int(number))
