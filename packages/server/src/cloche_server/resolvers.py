"""Questions to the configured name servers: asked for others as they are, or for the addresses of a name.

See: RFC 1035 4.1 (messages), 4.2 (transport). What comes back is hostile: bounded, checked, under a deadline.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path

from cloche_wire.errors import Unavailable

PORT = 53
MAX_ANSWER_BYTES = 65_535
TIMEOUT_S = 5.0
_A, _IN = 1, 1
_HEAD = 12
_MAX_ADDRESSES = 16


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


async def ask(resolvers: list[str], question: bytes, *, by_stream: bool = False) -> bytes:
    """Return the answer of the first name server that has one.

    Raises:
        Unavailable: None answers in time.
    """
    for resolver in resolvers:
        try:
            async with asyncio.timeout(TIMEOUT_S / len(resolvers)):
                way = _ask_by_stream if by_stream else _ask_by_datagram
                return await way(resolver, question)
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            continue
    raise Unavailable("no name server answers")


async def addresses_of(name: str, resolvers: list[str]) -> list[IPv4Address]:
    """Return the IPv4 addresses of a normalised name; none where it has none or the answer is no answer.

    Raises:
        Unavailable: No name server answers in time.
    """
    question = question_for(name, secrets.randbelow(1 << 16))
    answer = await ask(resolvers, question)
    if len(answer) > 2 and answer[2] & 2:  # cut short
        answer = await ask(resolvers, question, by_stream=True)
    return read_addresses(question, answer)


def question_for(name: str, number: int) -> bytes:
    """Return the message that asks for the addresses of a normalised name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", _A, _IN)


def read_addresses(question: bytes, answer: bytes) -> list[IPv4Address]:
    """Return the addresses in an answer to `question`; none if it is none. Aliases were followed for us."""
    if len(answer) < len(question) or answer[:2] != question[:2] or answer[2] & 0xF8 != 0x80:
        return []
    if (
        answer[3] & 0x0F
        or answer[4:6] != b"\0\1"
        or answer[_HEAD : len(question)].lower() != question[_HEAD:]
    ):
        return []
    found: list[IPv4Address] = []
    at = len(question)
    for _ in range(int.from_bytes(answer[6:8])):
        at = _after_name(answer, at)
        if at + 10 > len(answer):
            break
        kind, family, _, length = struct.unpack_from(">2HIH", answer, at)
        data = answer[at + 10 : at + 10 + length]
        at += 10 + length
        if (kind, family, len(data)) == (_A, _IN, 4):
            found.append(IPv4Address(data))
    return found[:_MAX_ADDRESSES]


def read_name(question: bytes) -> str | None:
    """Return the name that a question asks for, as it was spelt; None if it names none."""
    if question[4:6] != b"\0\1":
        return None
    labels: list[bytes] = []
    at = _HEAD
    while at < len(question) and (length := question[at]):
        if length > 63:  # a question that points elsewhere is none
            return None
        labels.append(question[at + 1 : at + 1 + length])
        at += 1 + length
    if at >= len(question) or any(b"." in label for label in labels):
        return None
    try:
        return b".".join(labels).decode("ascii")
    except UnicodeDecodeError:
        return None


def _after_name(message: bytes, at: int) -> int:
    while at < len(message) and (length := message[at]):
        if length >= 0xC0:  # a pointer ends the name
            return at + 2
        at += 1 + length
    return at + 1


async def _ask_by_datagram(resolver: str, question: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    # A connected socket with a port of its own: the kernel drops answers that come from anybody else.
    with socket.socket(
        socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    ) as asking:
        await loop.sock_connect(asking, (resolver, PORT))
        await loop.sock_sendall(asking, question)
        while True:
            answer = await loop.sock_recv(asking, MAX_ANSWER_BYTES)
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
