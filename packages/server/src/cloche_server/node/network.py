"""The network of sandboxes: a namespace and a veth pair each, one nftables table for all.

The gateway address is the same for every sandbox of the block and stands on our end of each pair, so rules
name it once and nothing has to be added per sandbox: creating one is netlink only. Whether a sandbox may
reach anything is decided by its interface's group (`ip link ... group`): one packet-path rule for all that
are offline. Only one with a policy of its own (`ruleset`) costs a call of nft, some 5 ms.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Generator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import structlog
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cloche_server.isolation import syscalls
from cloche_server.isolation.base import ID_RANGE, first_id
from cloche_server.node.messages import EgressPolicy
from cloche_server.node.ruleset import EGRESS_PORT, OFFLINE_GROUP, ONLINE_GROUP, Ruleset
from cloche_server.node.slots import Block
from cloche_wire.errors import Internal, Unavailable

INSIDE = "eth0"
_NFT_TIMEOUT_S = 10.0
IP_FREEBIND = 15  # in.h; binds the gateway address before the first sandbox brings it up (ip(7))
log = structlog.get_logger()


class Network:
    """The networks of one server's sandboxes.

    Its methods block for a few milliseconds: call them on a thread.
    """

    def __init__(self, block: Block, exceptions: tuple[str, ...]) -> None:
        """Take the block that gives addresses and names, and the operator's exceptions to `DENIED`."""
        self._block = block
        self._ruleset = Ruleset(block, exceptions)
        self._with_policy: set[int] = set()

    def prepare(self, policies: Mapping[int, EgressPolicy]) -> None:
        """Let the machine forward, and load our table in one transaction.

        Args:
            policies: Of the slots in use: sandboxes that lived on without a node are never without theirs.

        Raises:
            Unavailable: nft is missing, refuses, or the kernel cannot forward.
        """
        try:
            forward = Path("/proc/sys/net/ipv4/ip_forward")
            if forward.read_text().strip() != "1":
                forward.write_text("1")
        except OSError as error:
            raise Unavailable(f"cannot forward packets: {error}") from error
        _load(self._ruleset.whole(policies))
        self._with_policy = {slot for slot, policy in policies.items() if policy != EgressPolicy()}

    def set_policy(self, slot: int, policy: EgressPolicy, *, online: bool) -> None:
        """Replace what a slot may reach; on return no packet passes by the old policy.

        Raises:
            Unavailable: The packet filter does not take it. What held before goes on.
        """
        if online:  # the group rules alone over what is offline, so a policy left there does no harm
            self._load_policy(slot, policy)
        self.set_online(slot, online=online)

    def set_online(self, slot: int, *, online: bool) -> None:
        """Say whether a slot may reach anything outside.

        Raises:
            Unavailable: The kernel refused.
        """
        try:
            with _netlink() as netlink:
                group = ONLINE_GROUP if online else OFFLINE_GROUP
                netlink.link("set", ifname=self._block.interface(slot), group=group)
        except (OSError, NetlinkError) as error:
            raise Unavailable(f"cannot change the network of slot {slot}: {error}") from error

    def _load_policy(self, slot: int, policy: EgressPolicy) -> None:
        if policy == EgressPolicy():
            self._remove_policy(slot)
            return
        _load(self._ruleset.policy(slot, policy))
        self._with_policy.add(slot)

    def _remove_policy(self, slot: int) -> None:
        if slot in self._with_policy:  # the others cost no process
            _load(self._ruleset.no_policy(slot))
            self._with_policy.discard(slot)

    def listen_for_egress(self) -> int:
        """Return a listening socket for what the rules lead to the egress; the caller closes it.

        Raises:
            Unavailable: An egress that is just ending has it still, or somebody else.
        """
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_INET, kind) as listener:
            try:
                listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((str(self._block.gateway), EGRESS_PORT))
                listener.listen(1024)
            except OSError as error:
                raise Unavailable(f"cannot listen for egress: {error.strerror}") from error
            return listener.detach()

    def create(self, slot: int, policy: EgressPolicy, *, online: bool) -> int:
        """Make a sandbox's namespace and pair, and return the namespace's descriptor; the caller closes it.

        Leaves: the namespace alive as long as the descriptor or a process in it; on any error nothing.

        Raises:
            Internal: The kernel refused; the message names what.
        """
        namespace = syscalls.new_network_namespace()
        try:
            self._load_policy(slot, policy)  # before there is anything that could send
            self._make_pair(slot, namespace, online=online)
            with syscalls.network_namespace(namespace):
                _configure_inside(
                    self._block.address(slot), self._block.gateway, first_id(self._block.machine_slot(slot))
                )
        except (OSError, NetlinkError, Unavailable) as error:
            os.close(namespace)
            with contextlib.suppress(Unavailable):  # whoever ends the sandbox tries again
                self.remove(slot)
            raise Internal(f"cannot make the network of slot {slot}: {error}") from error
        return namespace

    def remove(self, slot: int) -> None:
        """Remove a sandbox's pair and its policy. Idempotent.

        The pair also goes by itself when the namespace ends.

        Raises:
            Unavailable: The packet filter keeps the policy; nothing passes by it.
        """
        with _netlink() as netlink, contextlib.suppress(NetlinkError):
            netlink.link("del", ifname=self._block.interface(slot))
        self._remove_policy(slot)

    def leftovers(self) -> set[int]:
        """Slots of our block that have an interface."""
        prefix = self._block.interface_prefix
        names = (path.name for path in Path("/sys/class/net").iterdir())
        return {int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)}

    def close(self) -> None:
        """Remove our table; only when no sandbox is left."""
        table = self._ruleset.table
        subprocess.run(["nft", "delete", "table", "inet", table], check=False, capture_output=True)

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


def _load(rules: str) -> None:
    """Have the packet filter take these, all or none."""
    try:
        subprocess.run(
            ["nft", "-f", "-"],
            input=rules,
            text=True,
            check=True,
            capture_output=True,
            timeout=_NFT_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise Unavailable("nft is not installed", hint="apt-get install nftables") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"cannot load the packet filter: {error.stderr.strip()[:300]}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"the packet filter takes longer than {_NFT_TIMEOUT_S:g} s") from error


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
