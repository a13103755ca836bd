"""The network of sandboxes: a namespace and a veth pair each, one nftables table for all.

The gateway address is the same for every sandbox of the block and stands on our end of each pair, so rules
name it once and nothing has to be added per sandbox: creating one is netlink only. What a sandbox may reach
is decided by its interface's group (`ip link ... group`): one packet-path rule for all sandboxes that are
offline.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Generator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import structlog
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cloche_server.isolation import syscalls
from cloche_server.isolation.base import ID_RANGE, first_id
from cloche_server.node.slots import Block
from cloche_wire.errors import Internal, Unavailable

INSIDE = "eth0"
ONLINE_GROUP, OFFLINE_GROUP = 0x636C6F01, 0x636C6F00
DENIED = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8",
    "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
)  # fmt: skip
"""Never reached from a sandbox unless the operator excepts it.

Private, link-local, metadata, multicast, our own range.
"""

log = structlog.get_logger()


class Network:
    """The networks of one server's sandboxes.

    Its methods block for a few milliseconds: call them on a thread.
    """

    def __init__(self, block: Block, exceptions: tuple[str, ...]) -> None:
        """Take the block that gives addresses and names, and the operator's exceptions to `DENIED`."""
        self._block = block
        self._exceptions = exceptions

    @property
    def table(self) -> str:
        """Name of our nftables table."""
        return f"cloche_{self._block.number}"

    def prepare(self) -> None:
        """Let the machine forward, and load our table in one transaction.

        Raises:
            Unavailable: nft is missing, refuses, or the kernel cannot forward.
        """
        try:
            forward = Path("/proc/sys/net/ipv4/ip_forward")
            if forward.read_text().strip() != "1":
                forward.write_text("1")
            subprocess.run(
                ["nft", "-f", "-"], input=self.ruleset(), text=True, check=True, capture_output=True
            )
        except FileNotFoundError as error:
            raise Unavailable("nft is not installed", hint="apt-get install nftables") from error
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"cannot load the packet filter: {error.stderr.strip()[:300]}") from error
        except OSError as error:
            raise Unavailable(f"cannot forward packets: {error}") from error

    def ruleset(self) -> str:
        """The whole table, as nft reads it.

        Emptied and made again, so that a restart never leaves old rules.
        """
        own, gateway = f'"{self._block.interface_prefix}*"', self._block.gateway
        allowed = f"ip daddr {{ {', '.join(self._exceptions)} }} accept" if self._exceptions else ""
        return f"""
table inet {self.table}
delete table inet {self.table}
table inet {self.table} {{
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname != {own} accept
        meta nfproto ipv6 drop
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
        ip daddr {gateway} icmp type echo-request accept
        ct state established,related accept
        drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname {own} jump outward
        oifname {own} ct state established,related accept
        oifname {own} drop
    }}
    chain outward {{
        iifgroup {OFFLINE_GROUP} drop
        meta nfproto ipv6 drop
        oifname "cl*" drop
        ct state established,related accept
        {allowed}
        ip daddr {{ {", ".join(DENIED)} }} drop
        tcp dport 25 drop
        accept
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {self._block.network} oifname != {own} masquerade
    }}
}}
"""

    def create(self, slot: int, *, online: bool) -> int:
        """Make a sandbox's namespace and pair, and return the namespace's descriptor; the caller closes it.

        Leaves: the namespace alive as long as the descriptor or a process in it; on any error nothing.

        Raises:
            Internal: The kernel refused; the message names what.
        """
        namespace = syscalls.new_network_namespace()
        try:
            self._make_pair(slot, namespace, online=online)
            with syscalls.network_namespace(namespace):
                _configure_inside(
                    self._block.address(slot), self._block.gateway, first_id(self._block.machine_slot(slot))
                )
        except (OSError, NetlinkError) as error:
            self.remove(slot)
            os.close(namespace)
            raise Internal(f"cannot make the network of slot {slot}: {error}") from error
        return namespace

    def remove(self, slot: int) -> None:
        """Remove a sandbox's pair. Idempotent; also goes by itself when the namespace ends."""
        with _netlink() as netlink, contextlib.suppress(NetlinkError):
            netlink.link("del", ifname=self._block.interface(slot))

    def leftovers(self) -> set[int]:
        """Slots of our block that have an interface."""
        prefix = self._block.interface_prefix
        names = (path.name for path in Path("/sys/class/net").iterdir())
        return {int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)}

    def close(self) -> None:
        """Remove our table; only when no sandbox is left."""
        subprocess.run(["nft", "delete", "table", "inet", self.table], check=False, capture_output=True)

    def _make_pair(self, slot: int, namespace: int, *, online: bool) -> None:
        name = self._block.interface(slot)
        with _netlink() as netlink:
            with contextlib.suppress(NetlinkError):
                netlink.link("del", ifname=name)  # of a sandbox whose end is not yet complete in the kernel
            mtu = _uplink_mtu(netlink)
            peer = {"ifname": INSIDE, "net_ns_fd": namespace, "mtu": mtu}
            netlink.link("add", ifname=name, kind="veth", mtu=mtu, peer=peer)
            index = netlink.link_lookup(ifname=name)[0]
            settings = Path("/proc/sys/net/ipv4/conf") / name
            (settings / "rp_filter").write_text("1")  # a source address other than its own is dropped here
            (settings / "send_redirects").write_text("0")
            (Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6").write_text("1")
            netlink.link("set", index=index, group=ONLINE_GROUP if online else OFFLINE_GROUP, state="up")
            netlink.addr("add", index=index, address=str(self._block.gateway), prefixlen=32)
            netlink.route("add", dst=f"{self._block.address(slot)}/32", oif=index, scope="link")


@contextlib.contextmanager
def _netlink() -> Generator[Any, None, None]:
    """A netlink socket in the calling thread's namespace; pyroute2 is untyped, and the unknown stays here."""
    with IPRoute() as opened:
        yield opened


def _uplink_mtu(netlink: Any) -> int:  # noqa: ANN401 - see `_netlink`
    """The packet size of the way out.

    With a larger one inside, replies of peers that filter ICMP would stall.
    """
    for route in netlink.get_default_routes(family=socket.AF_INET):
        link = netlink.get_links(route.get("oif"))[0]
        return int(link.get("mtu"))
    return 1500


def _configure_inside(address: IPv4Address, gateway: IPv4Address, first_group_id: int) -> None:
    """Set up the namespace that the calling thread is in. /proc/sys/net is that of the caller's namespace."""
    settings = Path("/proc/sys/net")
    (settings / "ipv6/conf/all/disable_ipv6").write_text("1")
    # The namespace belongs to the host's user namespace, so the sandbox's root has no capability over it:
    # ports below 1024 and ping are opened to everybody inside instead.
    (settings / "ipv4/ip_unprivileged_port_start").write_text("0")
    (settings / "ipv4/ping_group_range").write_text(f"{first_group_id} {first_group_id + ID_RANGE - 1}")
    with _netlink() as netlink:
        netlink.link("set", index=1, state="up")
        index = netlink.link_lookup(ifname=INSIDE)[0]
        netlink.addr("add", index=index, address=str(address), prefixlen=32)
        netlink.link("set", index=index, state="up")
        netlink.route("add", dst=f"{gateway}/32", oif=index, scope="link")
        netlink.route("add", dst="default", gateway=str(gateway), oif=index)
