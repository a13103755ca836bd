"""The network of sandboxes: a namespace and a veth pair each, one nftables table for all.

The gateway address is the same for every sandbox of the block and stands on our end of each pair, so rules
name it once and nothing has to be added per sandbox: making one is two batches of netlink. Whether a sandbox
may reach anything is decided by its interface's group (`ip link ... group`): one packet-path rule for all
that are not online. Only one with a policy of its own (`ruleset`) costs a call of nft, some 5 ms.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import structlog

from cloche_server.isolation import conntrack, netlink, syscalls
from cloche_server.isolation.base import ID_RANGE, first_id
from cloche_server.node.messages import EgressPolicy
from cloche_server.node.ruleset import EGRESS_PORT, OFFLINE_GROUP, ONLINE_GROUP, Ruleset, leaving_group
from cloche_server.node.slots import Block
from cloche_wire.errors import Internal, Unavailable

INSIDE = "eth0"
_LOOPBACK_INDEX, _INSIDE_INDEX = 1, 100
"""A fresh namespace may have tunnels of the kernel's behind its loopback."""
_FIRST_INDEX = 0x0C10_0000
"""Of our ends, by machine slot: the kernel counts up from 1 and does not come here."""
_OUR_HARDWARE_ADDRESS = b"\x02cloch"
"""Of our end of each pair: each is a network of its own. One that is set is left alone by udev."""
_OUR_SETTINGS = {netlink.RP_FILTER: 1, netlink.SEND_REDIRECTS: 0, netlink.ACCEPT_REDIRECTS: 0}
"""Of our end; by the first, a source address other than the sandbox's own is dropped there."""
_SOMEWHERE_OUTSIDE = IPv4Address("1.1.1.1")
"""The way to it is looked up, and nothing is sent."""
_USUAL_MTU = 1500
_NFT_TIMEOUT_S = 10.0
IP_FREEBIND = 15  # in.h; binds the gateway address before the first sandbox brings it up (ip(7))
log = structlog.get_logger()


class Network:
    """The networks of one server's sandboxes.

    Its methods block for a few milliseconds: call them on a thread.
    """

    def __init__(self, block: Block, exceptions: tuple[str, ...]) -> None:
        """Take the block that gives addresses and names, and the operator's exceptions to `ALWAYS_DENIED`."""
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
        group = ONLINE_GROUP if online else OFFLINE_GROUP
        try:
            with netlink.Socket() as host:
                host.send(netlink.set_group(self._block.interface(slot), group))
        except OSError as error:
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

    def new_namespace(self) -> int:
        """Return a descriptor of a fresh network namespace; the caller closes it.

        Raises:
            OSError: The kernel refuses.
        """
        return syscalls.new_network_namespace()

    def create(self, slot: int, namespace: int, policy: EgressPolicy, *, online: bool) -> None:
        """Make a sandbox's network with what it may reach, as `wire` and `set_policy` do.

        Args:
            slot: Whose.
            namespace: Descriptor of a fresh network namespace; stays the caller's.
            policy: What it may reach.
            online: Whether it may reach anything.

        Leaves: on any error nothing.

        Raises:
            Internal: The kernel refused; the message names what.
        """
        try:
            self.wire(slot, namespace)
            self.set_policy(slot, policy, online=online)
        except (OSError, Unavailable) as error:
            self._undo(slot)
            raise Internal(f"cannot make the network of slot {slot}: {error}") from error

    def wire(self, slot: int, namespace: int) -> None:
        """Make the pair between this machine and a fresh namespace, offline, whoever made the namespace.

        Raises:
            OSError: The kernel refused; the message names what. Something may be there by then.
        """
        with contextlib.ExitStack() as stack:
            host = stack.enter_context(netlink.Socket())
            pair = self._pair(slot, host.mtu_towards(_SOMEWHERE_OUTSIDE) or _USUAL_MTU)
            with syscalls.network_namespace(namespace) as own:
                _write_settings(first_id(self._block.machine_slot(slot)))
                inside = stack.enter_context(netlink.Socket())
                try:
                    inside.send(*pair.inward(own))
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.EBUSY):
                        raise
                    # Of the slot's last sandbox, whose end is not yet complete in the kernel.
                    host.send(netlink.remove(pair.outside.name))
                    inside.send(*pair.inward(own))
            # While it is down, so that no address of version 6 is ever there to be taken away.
            _write(f"ipv6/conf/{pair.outside.name}/disable_ipv6", "1")
            host.send(*pair.outward())
            inside.send(netlink.settle(pair.inside.number))

    def remove(self, slot: int) -> None:
        """Take a slot's network away: nothing passes from here on, and its policy is gone. Idempotent.

        The pair goes by itself when the
        namespace ends. Where something holds that still, such as an open connection that the edge dialled,
        `sweep` takes the pair.

        Raises:
            Unavailable: The kernel refused; the policy may stand still, and nothing passes by it.
        """
        try:
            with netlink.Socket() as host:
                host.send(netlink.set_group(self._block.interface(slot), leaving_group(self._block)))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise Unavailable(f"cannot remove the network of slot {slot}: {error}") from error
        self._remove_policy(slot)

    def sweep(self) -> None:
        """Take the pairs of removed networks that are there still.

        All at once, since the kernel waits some 30 ms for whoever may be using what goes, one or many.

        Raises:
            Unavailable: The kernel refused.
        """
        try:
            with netlink.Socket() as host:
                host.send(netlink.remove_group(leaving_group(self._block)))
        except OSError as error:
            if error.errno != errno.ENODEV:  # all had gone by themselves
                raise Unavailable(f"cannot remove networks: {error}") from error

    def has_connections(self, slot: int) -> bool:
        """Whether a sandbox has a connection open that it began itself, to anywhere outside.

        Where the kernel does not tell, it is taken to have one.
        """
        try:
            return self._block.address(slot) in conntrack.sources()
        except OSError as error:
            log.warning("network.connections_unknown", error=error.strerror)
            return True

    def leftovers(self) -> set[int]:
        """Slots of our block that have an interface."""
        prefix = self._block.interface_prefix
        names = (name for _, name in socket.if_nameindex())
        return {int(name.removeprefix(prefix)) for name in names if name.startswith(prefix)}

    def close(self) -> None:
        """Remove our table and what is left of networks; only when no sandbox is left."""
        with contextlib.suppress(Unavailable):
            self.sweep()
        table = self._ruleset.table
        subprocess.run(["nft", "delete", "table", "inet", table], check=False, capture_output=True)

    def _undo(self, slot: int) -> None:
        with contextlib.suppress(Unavailable):  # whoever ends the sandbox tries again
            self.remove(slot)
            self.sweep()

    def _pair(self, slot: int, mtu: int) -> _Pair:
        """The packet size is that of the way out: with a larger one, peers that filter ICMP would stall."""
        index = _FIRST_INDEX + self._block.machine_slot(slot)
        return _Pair(
            inside=netlink.End(INSIDE, _INSIDE_INDEX, netlink.random_hardware_address(), mtu),
            outside=netlink.End(self._block.interface(slot), index, _OUR_HARDWARE_ADDRESS, mtu),
            gateway=self._block.gateway,
            address=self._block.address(slot),
        )


class _Pair(NamedTuple):
    """The veth pair of one slot, with the addresses of its ends.

    Both ends know each other's hardware address, so that none can be told a wrong one.
    """

    inside: netlink.End
    outside: netlink.End
    gateway: IPv4Address
    address: IPv4Address

    def inward(self, host: int) -> tuple[netlink.Message, ...]:
        """What makes the pair, sent in the sandbox's namespace, and all that belongs at that end."""
        return (
            netlink.add_pair(self.inside, self.outside, far_namespace=host, far_group=OFFLINE_GROUP),
            # SAFETY: these name links of the fresh namespace, so without the pair they do nothing.
            netlink.bring_up(_LOOPBACK_INDEX),
            # No peer: runsc takes the address over by its own name.
            netlink.add_address(self.inside.number, self.address),
            netlink.add_default_route(self.inside.number, self.gateway),
            netlink.add_neighbour(self.inside.number, self.gateway, self.outside.hardware_address),
        )

    def outward(self) -> tuple[netlink.Message, ...]:
        """What belongs at our end. The pair is there, so that its index is nobody else's."""
        return (
            netlink.bring_up(self.outside.number, _OUR_SETTINGS),
            netlink.add_address(self.outside.number, self.gateway, self.address),
            netlink.add_neighbour(self.outside.number, self.address, self.inside.hardware_address),
        )


def _write_settings(first_group_id: int) -> None:
    """Set up the namespace that the calling thread is in, before it has any link but its loopback.

    The sandbox's root has no capability over it, so ports below 1024 and ping are opened to everybody inside.
    Group ids are those of the writer's user namespace, whoever owns the network namespace.
    """
    _write("ipv6/conf/all/disable_ipv6", "1")  # also of what will be made
    _write("ipv4/ip_unprivileged_port_start", "0")
    _write("ipv4/ping_group_range", f"{first_group_id} {first_group_id + ID_RANGE - 1}")


def _write(setting: str, value: str) -> None:
    """Write below /proc/sys/net, which is that of the calling thread's namespace."""
    descriptor = os.open(f"/proc/sys/net/{setting}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


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
