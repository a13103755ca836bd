"""The kernel's table of connections, read from bytes as it sends them."""

import socket
import struct
from ipaddress import IPv4Address

import pytest

from cloche_server.isolation import conntrack

SANDBOX = IPv4Address("10.200.0.7")
ESTABLISHED, TIME_WAIT = 3, 7
ASSURED = 1 << 2
NESTED = 0x8000


def attribute(kind: int, content: bytes) -> bytes:
    padding = b"\0" * (-len(content) % 4)
    return struct.pack("=HH", 4 + len(content), kind) + content + padding


def connection(protocol: int, *, state: int = 0, status: int = 0) -> bytes:
    """One entry's attributes, in the order of the kernel: both tuples, status, what the protocol adds."""
    addresses = attribute(1, SANDBOX.packed) + attribute(2, IPv4Address("192.0.2.1").packed)
    ports = attribute(1, bytes([protocol])) + attribute(2, struct.pack(">H", 40_000))
    there = attribute(1 | NESTED, addresses) + attribute(2 | NESTED, ports)
    back = attribute(1 | NESTED, attribute(1, IPv4Address("192.0.2.1").packed))
    info = attribute(4 | NESTED, attribute(1 | NESTED, attribute(1, bytes([state]))))
    parts = [
        attribute(1 | NESTED, there),
        attribute(2 | NESTED, back),
        attribute(3, struct.pack(">I", status)),
    ]
    return b"".join([*parts, info] if protocol == socket.IPPROTO_TCP else parts)


@pytest.mark.parametrize(
    ("entry", "is_open"),
    [
        (connection(socket.IPPROTO_TCP, state=ESTABLISHED), True),
        (connection(socket.IPPROTO_TCP, state=TIME_WAIT, status=ASSURED), False),
        (connection(socket.IPPROTO_UDP, status=ASSURED | 2), True),
        (connection(socket.IPPROTO_UDP, status=2), False),
        (b"", False),
        (b"\xff" * 7, False),
        (connection(socket.IPPROTO_TCP, state=ESTABLISHED)[:20], False),
    ],
)
def test_connection_is_open_by_its_state_or_else_when_both_have_spoken(entry: bytes, is_open: bool) -> None:
    assert conntrack.open_from(entry) == (SANDBOX if is_open else None)


def test_attribute_without_a_size_ends_the_reading() -> None:
    assert conntrack.open_from(b"\0\0\1\0" * 8) is None
