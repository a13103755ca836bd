"""Our own netlink messages, against the kernel: what `ip` shows is what was asked for."""

import contextlib
import errno
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from tests.support import own_network

from cloche_server.isolation import netlink, syscalls

pytestmark = pytest.mark.needs("root", "nft")

HERE, THERE = IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2")
OURS, THEIRS = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\x02"


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    with own_network.entered():
        yield


@contextlib.contextmanager
def namespace() -> Iterator[int]:
    """Another namespace than the machine's."""
    made = syscalls.new_network_namespace()
    try:
        yield made
    finally:
        os.close(made)


def pair(name: str, host: int, *, number: int = 1000) -> netlink.Message:
    near, far = netlink.End("eth0", 100, THEIRS, 1400), netlink.End(name, number, OURS, 1400)
    return netlink.add_pair(near, far, far_namespace=host, far_group=7)


def shown(*argv: str) -> list[dict[str, Any]]:
    """What `ip` shows in the thread's namespace."""
    return json.loads(subprocess.run(["ip", "-d", "-j", *argv], capture_output=True, check=True).stdout)


def test_a_pair_is_as_it_was_asked_for() -> None:
    """Names, numbers, hardware addresses, sizes and group hold; the near end is up, the far end is down."""
    with namespace() as other:
        with syscalls.network_namespace(other) as host, netlink.Socket() as theirs:
            theirs.send(pair("far0", host))
            (near,) = shown("link", "show", "eth0")
        (far,) = shown("link", "show", "far0")
    assert (near["ifindex"], near["mtu"], near["address"]) == (100, 1400, "02:00:00:00:00:02")
    assert (far["ifindex"], far["mtu"], far["address"]) == (1000, 1400, "02:00:00:00:00:01")
    assert (near["group"], far["group"]) == ("default", "7")
    assert {end["linkinfo"]["info_kind"] for end in (near, far)} == {"veth"}
    assert {end[f"num_{way}_queues"] for end in (near, far) for way in ("tx", "rx")} == {1}
    assert ("UP" in near["flags"], "UP" in far["flags"]) == (True, False)


def test_addresses_routes_and_neighbours_hold() -> None:
    """One batch gives an end all it needs."""
    with namespace() as other, syscalls.network_namespace(other) as host, netlink.Socket() as theirs:
        theirs.send(
            pair("far0", host),
            netlink.bring_up(1),
            netlink.add_address(100, THERE),
            netlink.add_default_route(100, HERE),
            netlink.add_neighbour(100, HERE, OURS),
        )
        routes = {route["dst"]: (route.get("gateway"), route["dev"]) for route in shown("-4", "route")}
        assert routes == {"default": (str(HERE), "eth0")}
        known = [(entry["dst"], entry["lladdr"], entry["state"]) for entry in shown("-4", "neigh")]
        assert known == [(str(HERE), "02:00:00:00:00:01", ["PERMANENT"])]
        (address,) = shown("-4", "addr", "show", "eth0")[0]["addr_info"]
        assert (address["local"], address.get("address"), address["prefixlen"]) == (str(THERE), None, 32)
        assert "UP" in shown("link", "show", "lo")[0]["flags"]


def test_settings_of_a_link_hold() -> None:
    """They are those that /proc/sys/net/ipv4/conf has by these names, and no others change."""
    folder = Path("/proc/sys/net/ipv4/conf/far0")
    asked = {
        "rp_filter": (netlink.RP_FILTER, 1),
        "send_redirects": (netlink.SEND_REDIRECTS, 0),
        "accept_redirects": (netlink.ACCEPT_REDIRECTS, 0),
    }
    with namespace() as other:
        with syscalls.network_namespace(other) as host, netlink.Socket() as theirs:
            theirs.send(pair("far0", host))
        before = {
            path.name: path.read_text().strip() for path in folder.iterdir() if path.name != "stable_secret"
        }
        with netlink.Socket() as ours:
            ours.send(netlink.bring_up(1000, dict(asked.values())))
        after = {name: (folder / name).read_text().strip() for name in before}
    assert after == before | {name: str(value) for name, (_, value) in asked.items()}
    assert after != before


def test_a_refused_message_is_named_and_those_after_it_are_carried_out() -> None:
    """So a batch has to be such that what follows a failure does no harm."""
    with netlink.Socket() as ours:
        with pytest.raises(OSError, match=r"add route over 198\.18\.0\.1") as refused:
            ours.send(netlink.add_default_route(1, HERE), netlink.bring_up(1))
        assert refused.value.errno == errno.ENETDOWN
        assert "UP" in shown("link", "show", "lo")[0]["flags"]
        with pytest.raises(OSError, match="remove none0") as refused:
            ours.send(netlink.bring_up(1), netlink.remove("none0"))
        assert refused.value.errno == errno.ENODEV
        ours.send(netlink.bring_up(1))  # no answer to an earlier batch is taken for one to this


def test_a_group_is_removed_at_once_and_nothing_else_is() -> None:
    """Links are put into a group by name."""
    with contextlib.ExitStack() as stack, netlink.Socket() as ours:
        for number in range(3):
            other = stack.enter_context(namespace())
            with syscalls.network_namespace(other) as host, netlink.Socket() as theirs:
                theirs.send(pair(f"far{number}", host, number=1000 + number))
        ours.send(netlink.set_group("far0", 8), netlink.set_group("far2", 8))
        ours.send(netlink.remove_group(8))
        assert {name for _, name in socket.if_nameindex()} == {"lo", "far1"}
        with pytest.raises(OSError, match="remove links of group 0x8"):
            ours.send(netlink.remove_group(8))


def test_the_packet_size_is_that_of_the_way_out() -> None:
    """And none is told where there is no way."""
    with namespace() as other, netlink.Socket() as ours:
        with syscalls.network_namespace(other) as host, netlink.Socket() as theirs:
            theirs.send(pair("far0", host))
        assert ours.mtu_towards(THERE) is None
        ours.send(netlink.bring_up(1000), netlink.add_address(1000, HERE, THERE))
        assert ours.mtu_towards(THERE) == 1400


def test_hardware_addresses_are_of_local_making_and_differ() -> None:
    """The two lowest bits of the first byte say: given out by nobody, and one device's."""
    made = {netlink.random_hardware_address() for _ in range(100)}
    assert len(made) == 100
    assert {address[0] & 3 for address in made} == {2}
    assert {len(address) for address in made} == {6}
