"""The kernel's table of connections that pass this machine, read over ctnetlink (nfnetlink_conntrack.h).

It knows those of every sandbox alike: of one whose network is the kernel's, and of one that has a network
stack of its own behind its interface.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

_NETLINK_NETFILTER = 12
_GET_CONNECTIONS = (1 << 8) | 1
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_HEADER, _FAMILY = struct.Struct("=IHHII"), struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_RECEIVE_BYTES = 65_536

_TUPLE_ORIGINAL, _STATUS, _PROTOCOL_INFO = 1, 3, 4
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_IPV4_SOURCE, _PROTOCOL_NUMBER = 1, 1
_INFO_TCP, _TCP_STATE = 1, 1
_TCP_ESTABLISHED = 3
_STATUS_ASSURED = 1 << 2


def sources() -> Iterator[IPv4Address]:
    """The address that began it, of each connection that is open now; one may come several times.

    That is: TCP that is established, and what else has passed both ways more than once. Blocks for about a
    microsecond per connection of the machine.

    Raises:
        OSError: The kernel refuses.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asked:
        asked.bind((0, 0))
        body = _FAMILY.pack(socket.AF_INET, 0, 0)
        size = _HEADER.size + len(body)
        asked.send(_HEADER.pack(size, _GET_CONNECTIONS, _REQUEST | _DUMP, 1, 0) + body)
        while True:
            for kind, content in _messages(asked.recv(_RECEIVE_BYTES)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    number = -struct.unpack_from("=i", content)[0]
                    raise OSError(number, "cannot read the table of connections")
                if (source := open_from(content[_FAMILY.size :])) is not None:
                    yield source


def open_from(content: bytes) -> IPv4Address | None:
    """The source of one connection, by its attributes; None where it is not open."""
    found = dict(_attributes(content))
    began = dict(_attributes(found.get(_TUPLE_ORIGINAL, b"")))
    source = dict(_attributes(began.get(_TUPLE_IP, b""))).get(_IPV4_SOURCE)
    protocol = dict(_attributes(began.get(_TUPLE_PROTOCOL, b""))).get(_PROTOCOL_NUMBER, b"\0")[0]
    if source is None or not _is_open(protocol, found):
        return None
    return IPv4Address(source)


def _is_open(protocol: int, found: dict[int, bytes]) -> bool:
    if protocol == socket.IPPROTO_TCP:
        info = dict(_attributes(found.get(_PROTOCOL_INFO, b"")))
        state = dict(_attributes(info.get(_INFO_TCP, b""))).get(_TCP_STATE, b"\0")
        return state[0] == _TCP_ESTABLISHED
    (status,) = struct.unpack(">I", found.get(_STATUS, b"\0\0\0\0"))
    return bool(status & _STATUS_ASSURED)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        size, kind, *_ = _HEADER.unpack_from(data)
        if size < _HEADER.size:
            return
        yield kind, data[_HEADER.size : size]
        data = data[(size + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(data)
        if size < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : size]
        data = data[(size + 3) & ~3 :]
