"""The name server that sandboxes see: a stub that forwards questions to the host's resolvers.

It stands on the gateway address, which every sandbox has. What a sandbox may not ask is refused at once, so
that a program that resolves a name there does not hang. Packets are passed on as they are, bounded in size,
number and time. See: RFC 1035 4.1.1 (header), 4.2 (transport).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address

import structlog

from cloche_server import resolvers
from cloche_server.node.network import IP_FREEBIND
from cloche_wire.errors import Unavailable

_MAX_QUESTION_BYTES = 1232
_MAX_IN_FLIGHT = 512
_MAX_OF_ONE_ASKER = 64  # so that a sandbox whose questions hang takes no neighbour's place
_REFUSED, _SERVER_FAILURE = 5, 2

log = structlog.get_logger()


MayAsk = Callable[[str, str | None], bool]
"""Whether an address may ask for a name; None where the question names none."""


class Stub:
    """The stub of one block."""

    def __init__(self, gateway: IPv4Address, upstream: list[str], may_ask: MayAsk) -> None:
        """Take the address to stand on, whom to ask, and who may ask for what."""
        self._gateway = str(gateway)
        self._resolvers = upstream
        self._may_ask = may_ask
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
                f"cannot answer names on {self._gateway}:{resolvers.PORT}: {error.strerror}",
                hint="a name server of the host listens on every address; bind it to its own",
            ) from error
        server = await asyncio.start_server(self._serve_stream, sock=stream)
        with datagrams:
            async with server, asyncio.TaskGroup() as tasks:
                await self._serve_datagrams(datagrams, tasks)

    def _bind(self, kind: int) -> socket.socket:
        bound = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self._gateway, resolvers.PORT))
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
            async with asyncio.timeout(resolvers.TIMEOUT_S * 2):
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
        if not self._may_ask(asker, resolvers.read_name(question)):
            return _empty_answer(question, _REFUSED)
        try:
            return await resolvers.ask(self._resolvers, question, by_stream=by_stream)
        except Unavailable:
            return _empty_answer(question, _SERVER_FAILURE)


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
