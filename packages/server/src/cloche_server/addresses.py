"""Which IPv4 addresses sandboxes never reach, whatever a policy says: one list for all that enforce it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

EVERYWHERE = "0.0.0.0/0"
ALWAYS_DENIED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8",
    "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
"""Never reached from a sandbox unless the operator excepts it.

Private, link-local, metadata, multicast, our own range. See: RFC 6890.
"""
_ALWAYS_DENIED = tuple(map(IPv4Network, ALWAYS_DENIED))


def is_always_denied(target: IPv4Address | IPv4Network, exceptions: Iterable[str]) -> bool:
    """Whether no sandbox may reach any of `target`, given the operator's exceptions."""
    network = IPv4Network(target)
    if not any(network.subnet_of(denied) for denied in _ALWAYS_DENIED):
        return False
    return not any(network.overlaps(IPv4Network(excepted)) for excepted in exceptions)


def collapsed(*networks: Iterable[str | IPv4Network]) -> tuple[str, ...]:
    """Without overlaps, which the packet filter's intervals do not take."""
    every = (IPv4Network(network) for group in networks for network in group)
    return tuple(map(str, collapse_addresses(every)))
