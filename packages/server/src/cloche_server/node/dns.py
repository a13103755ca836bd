"""The name server that sandboxes see: a stub that forwards questions to the host's resolvers.

It stands on the gateway address, which every sandbox has. Questions of a sandbox without internet are
refused at once, so that a program that resolves a name there does not hang. Packets are passed on as they
are, bounded in size, number and time. See: RFC 1035 4.1.1 (header), 4.2 (transport).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import structlog

from cloche_wire.errors import Unavailable

PORT = 53
_MAX_QUESTION_BYTES = 1232
_MAX_ANSWER_BYTES = 65_535
_MAX_IN_FLIGHT = 512
_MAX_OF_ONE_ASKER = 64  # so that a sandbox whose questions hang takes no neighbour's place
_TIMEOUT_S = 5.0
_REFUSED, _SERVER_FAILURE = 5, 2
_IP_FREEBIND = 15  # in.h; lets us bind the gateway address before the first sandbox brings it up (ip(7))

log = structlog.get_logger()


def upstream_resolvers(
    configured: tuple[str, ...], resolv_conf: Path = Path("/etc/resolv.conf")
) -> list[str]:
    """The IPv4 name servers to ask: the configured ones, else the host's."""
    if configured:
        return list(configured)
    words = (
        (line.split() for line in resolv_conf.read_text().splitlines()) if resolv_conf.exists() else iter(())
    )
    return [
        parts[1] for parts in words if len(parts) > 1 and parts[0] == "nameserver" and ":" not in parts[1]
    ]


class Stub:
    """The stub of one block."""

    def __init__(self, gateway: IPv4Address, resolvers: list[str], is_online: Callable[[str], bool]) -> None:
        """Take the address to stand on, whom to ask, and who may ask (by the asker's address)."""
        self._gateway = str(gateway)
        self._resolvers = resolvers
        self._is_online = is_online
        self._slots = asyncio.Semaphore(_MAX_IN_FLIGHT)
        self._in_flight: Counter[str] = Counter()

    async def serve(self) -> None:
        """Answer over UDP and TCP until cancelled.

        Raises:
            Unavailable: The gateway's port 53 is taken by a program that listens on every address.
        """
        try:
            datagrams = self._bind(socket.SOCK_DGRAM)
            stream = self._bind(socket.SOCK_STREAM)
        except OSError as error:
            raise Unavailable(
                f"cannot answer names on {self._gateway}:{PORT}: {error.strerror}",
                hint="a name server of the host listens on every address; bind it to its own",
            ) from error
        server = await asyncio.start_server(self._serve_stream, sock=stream)
        with datagrams:
            async with server, asyncio.TaskGroup() as tasks:
                await self._serve_datagrams(datagrams, tasks)

    def _bind(self, kind: int) -> socket.socket:
        bound = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            bound.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self._gateway, PORT))
        except BaseException:
            bound.close()
            raise
        return bound

    async def _serve_datagrams(self, bound: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            question, asker = await loop.sock_recvfrom(bound, _MAX_QUESTION_BYTES + 1)
            if 12 <= len(question) <= _MAX_QUESTION_BYTES and self._in_flight[asker[0]] < _MAX_OF_ONE_ASKER:
                await self._slots.acquire()
                self._in_flight[asker[0]] += 1
                tasks.create_task(self._answer_datagram(bound, question, asker))

    async def _answer_datagram(self, bound: socket.socket, question: bytes, asker: tuple[str, int]) -> None:
        try:
            answer = await self._resolve(question, asker[0])
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendto(bound, answer, asker)
        finally:
            self._slots.release()
            self._forget(asker[0])

    def _forget(self, asker: str) -> None:
        self._in_flight[asker] -= 1
        if not self._in_flight[asker]:
            del self._in_flight[asker]

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asker = writer.get_extra_info("peername")[0]
        if self._in_flight[asker] >= _MAX_OF_ONE_ASKER:
            writer.close()
            return
        self._in_flight[asker] += 1
        try:
            async with asyncio.timeout(_TIMEOUT_S * 2):
                while True:
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    question = await reader.readexactly(length)
                    if not 12 <= length <= _MAX_QUESTION_BYTES:
                        return
                    async with self._slots:
                        answer = await self._resolve(question, asker, by_stream=True)
                    writer.write(struct.pack(">H", len(answer)) + answer)
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            self._forget(asker)

    async def _resolve(self, question: bytes, asker: str, *, by_stream: bool = False) -> bytes:
        if not self._is_online(asker):
            return _empty_answer(question, _REFUSED)
        for resolver in self._resolvers:
            try:
                async with asyncio.timeout(_TIMEOUT_S / len(self._resolvers)):
                    ask = _ask_by_stream if by_stream else _ask_by_datagram
                    return await ask(resolver, question)
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                continue
        return _empty_answer(question, _SERVER_FAILURE)


async def _ask_by_datagram(resolver: str, question: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    # A connected socket with a port of its own: the kernel drops answers that come from anybody else.
    with socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    ) as asking:
        await loop.sock_connect(asking, (resolver, PORT))
        await loop.sock_sendall(asking, question)
        while True:
            answer = await loop.sock_recv(asking, _MAX_ANSWER_BYTES)
            if answer[:2] == question[:2]:
                return answer


async def _ask_by_stream(resolver: str, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(resolver, PORT)
    try:
        writer.write(struct.pack(">H", len(question)) + question)
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        return await reader.readexactly(length)
    finally:
        writer.close()


def _empty_answer(question: bytes, code: int) -> bytes:
    """The question sent back as an answer without records, with a response code (RFC 1035 4.1.1)."""
    opcode_and_recursion = question[2] & 0x79
    head = question[:2] + bytes([0x80 | opcode_and_recursion, 0x80 | code]) + question[4:6] + bytes(6)
    return head + _first_question(question)


def _first_question(question: bytes) -> bytes:
    end = 12
    while end < len(question) and question[end]:
        end += question[end] + 1
    return question[12 : end + 5]
