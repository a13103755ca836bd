"""Links, addresses and routes: messages of rtnetlink(7) packed by hand, several in one system call.

What a sandbox's network needs is seven messages that differ in a few numbers. A general library spent 9 ms
of a core on building, sending and reading them; the kernel's part of that is 1.5.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from typing import NamedTuple, Self

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 20, 24, 26, 28
_ERROR = 2
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _CREATE = 1, 4, 0x100, 0x200, 0x400

# Attributes: if_link.h, veth.h, if_addr.h, rtnetlink.h, neighbour.h, ip.h.
_IFLA_ADDRESS, _IFLA_NAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC = 1, 3, 4, 18, 26
_IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_EXT_MASK, _IFLA_TX_QUEUES, _IFLA_RX_QUEUES = 27, 28, 29, 31, 32
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER, _INET_CONF = 1, 2, 1, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DESTINATION, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_NDA_DESTINATION, _NDA_LLADDR = 1, 2

_IFF_UP = 1
_TABLE_MAIN, _BY_ADMINISTRATOR, _SCOPE_UNIVERSE, _UNICAST = 254, 4, 0, 1
_ON_LINK = 4  # rtnetlink(7), RTNH_F_ONLINK
_NUD_PERMANENT = 0x80
_SKIP_STATISTICS = 8
ACCEPT_REDIRECTS, SEND_REDIRECTS, RP_FILTER = 4, 6, 8
"""Settings of one interface, by the numbers of ip.h; as in /proc/sys/net/ipv4/conf."""

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=B3xiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER, _SIGNED = struct.Struct("=I"), struct.Struct("=i")
_RECEIVE_BYTES = 32_768


class Message(NamedTuple):
    """One message, and what it is for, which an error names."""

    what: str
    kind: int
    flags: int
    body: bytes


class End(NamedTuple):
    """One end of a pair of links."""

    name: str
    number: int
    """Its index, chosen by us, so that nothing has to be asked for before the next messages."""
    hardware_address: bytes
    mtu: int

    def attributes(self) -> bytes:
        """What both ends are told alike; one queue each, since the kernel's default is one per processor."""
        return (
            _text(_IFLA_NAME, self.name)
            + _number(_IFLA_MTU, self.mtu)
            + _attribute(_IFLA_ADDRESS, self.hardware_address)
            + _number(_IFLA_TX_QUEUES, 1)
            + _number(_IFLA_RX_QUEUES, 1)
        )


def add_pair(near: End, far: End, *, far_namespace: int, far_group: int) -> Message:
    """A veth pair: the near end is up and in the socket's namespace, the far end is down and in the other.

    The far end is in its group from the first moment.
    """
    peer = far.attributes() + _number(_IFLA_NET_NS_FD, far_namespace) + _number(_IFLA_GROUP, far_group)
    data = _attribute(_VETH_INFO_PEER, _LINK.pack(0, 0, far.number, 0, 0) + peer)
    info = _text(_INFO_KIND, "veth") + _attribute(_INFO_DATA, data)
    head = _LINK.pack(0, 0, near.number, _IFF_UP, _IFF_UP)
    body = head + near.attributes() + _attribute(_IFLA_LINKINFO, info)
    return Message(f"add {far.name}", _NEWLINK, _CREATE | _EXCLUSIVE, body)


def bring_up(index: int, settings: Mapping[int, int] | None = None) -> Message:
    """Bring a link up, with settings such as `RP_FILTER`."""
    body = _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP)
    if settings:
        values = b"".join(_number(name, value) for name, value in settings.items())
        body += _attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET, _attribute(_INET_CONF, values)))
    return Message(f"bring up link {index}", _SETLINK, 0, body)


def settle(index: int) -> Message:
    """Ask for a link whose other end has just come up, and with that have the kernel put it to use.

    It does so in its own time otherwise (link_watch.c), a few milliseconds or many; a first packet that comes
    before is dropped, and sent again after a second. Kernels before 6.8 do so only.
    """
    body = _LINK.pack(0, 0, index, 0, 0) + _number(_IFLA_EXT_MASK, _SKIP_STATISTICS)
    return Message(f"settle link {index}", _GETLINK, 0, body)


def set_group(name: str, group: int) -> Message:
    """Put a link into a group."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _text(_IFLA_NAME, name) + _number(_IFLA_GROUP, group)
    return Message(f"set group of {name}", _SETLINK, 0, body)


def remove(name: str) -> Message:
    """Remove a link, and with it its other end. The kernel answers when both are gone, after some 25 ms."""
    return Message(f"remove {name}", _DELLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _text(_IFLA_NAME, name))


def remove_group(group: int) -> Message:
    """Remove every link of a group, in the time of one."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _number(_IFLA_GROUP, group)
    return Message(f"remove links of group {group:#x}", _DELLINK, 0, body)


def add_address(index: int, address: IPv4Address, peer: IPv4Address | None = None) -> Message:
    """Give a link its address, and perhaps that of its only neighbour, to which it then has a route."""
    peer = peer or address
    body = _ADDRESS.pack(socket.AF_INET, 32, 0, _SCOPE_UNIVERSE, index)
    body += _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, peer.packed)
    return Message(f"add {address} to link {index}", _NEWADDR, _CREATE | _EXCLUSIVE, body)


def add_default_route(index: int, gateway: IPv4Address) -> Message:
    """Send what has no other way over the gateway, which is on that link whatever other routes say."""
    body = _ROUTE.pack(
        socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _BY_ADMINISTRATOR, _SCOPE_UNIVERSE, _UNICAST, _ON_LINK
    )
    body += _attribute(_RTA_GATEWAY, gateway.packed) + _number(_RTA_OIF, index)
    return Message(f"add route over {gateway}", _NEWROUTE, _CREATE | _EXCLUSIVE, body)


def add_neighbour(index: int, address: IPv4Address, hardware_address: bytes) -> Message:
    """Say once and for all which hardware address a neighbour has."""
    body = _NEIGHBOUR.pack(socket.AF_INET, index, _NUD_PERMANENT, 0, _UNICAST)
    body += _attribute(_NDA_DESTINATION, address.packed) + _attribute(_NDA_LLADDR, hardware_address)
    return Message(f"add neighbour {address}", _NEWNEIGH, _CREATE | _REPLACE, body)


def random_hardware_address() -> bytes:
    """One that no maker of hardware has given out, and no group address."""
    first, *others = os.urandom(6)
    return bytes((first & 0xFC | 0x02, *others))


class Socket:
    """A connection to the kernel, in the network namespace that the calling thread is in when it is made."""

    def __init__(self) -> None:
        """Open it."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)

    def __enter__(self) -> Self:
        """Use it as a context manager: it is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._socket.close()

    def send(self, *messages: Message) -> None:
        """Have the kernel carry out messages in order, by one system call.

        Raises:
            OSError: It refused one; the message names it. Those after it were carried out all the same, so
                they must not harm without it.
        """
        last = len(messages) - 1
        packed = [
            _pack(message, number, _ACK if number == last else 0) for number, message in enumerate(messages)
        ]
        for kind, number, body in self._ask(b"".join(packed), last):
            if kind != _ERROR:
                continue
            (result,) = _SIGNED.unpack_from(body)
            if result != 0:
                raise OSError(-result, f"{messages[number].what}: {os.strerror(-result)}")

    def mtu_towards(self, address: IPv4Address) -> int | None:
        """The packet size of the link that packets to an address leave by; None where there is no way."""
        route = _ROUTE.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
        way = self._get(Message("", _GETROUTE, 0, route + _attribute(_RTA_DESTINATION, address.packed)))
        if way is None or _RTA_OIF not in way:
            return None
        link = self._get(Message("", _GETLINK, 0, _LINK.pack(0, 0, *_NUMBER.unpack(way[_RTA_OIF]), 0, 0)))
        return _NUMBER.unpack(link[_IFLA_MTU])[0] if link is not None else None

    def _get(self, message: Message) -> dict[int, bytes] | None:
        """The attributes of the kernel's answer; None where it has none."""
        heads = {_GETROUTE: _ROUTE.size, _GETLINK: _LINK.size}
        for kind, _, body in self._ask(_pack(message, 0, _ACK), 0):
            if kind != _ERROR:
                return dict(_attributes(body[heads[message.kind] :]))
        return None

    def _ask(self, packed: bytes, last: int) -> list[tuple[int, int, bytes]]:
        """Send, and return type, number and body of each answer, the last acknowledgement included.

        The kernel works in the call that sends, so that everything is there when it returns.
        """
        self._socket.send(packed)
        found: list[tuple[int, int, bytes]] = []
        while not found or found[-1][:2] != (_ERROR, last):
            found += _answers(self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT))
        return found


def _pack(message: Message, number: int, flags: int) -> bytes:
    size = _HEADER.size + len(message.body)
    head = _HEADER.pack(size, message.kind, _REQUEST | message.flags | flags, number, 0)
    return head + message.body + bytes(-size % 4)


def _answers(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(received) >= _HEADER.size:
        size, kind, _, number, _ = _HEADER.unpack_from(received)
        if size < _HEADER.size:
            raise OSError(errno.EBADMSG, "answer without an end")
        yield kind, number, received[_HEADER.size : size]
        received = received[size + -size % 4 :]


def _attributes(received: bytes) -> Iterator[tuple[int, bytes]]:
    while len(received) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(received)
        if size < _ATTRIBUTE.size:
            return
        yield kind, received[_ATTRIBUTE.size : size]
        received = received[size + -size % 4 :]


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, _NUMBER.pack(value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")
