"""Networks of sandboxes on a machine of their own: what making one costs, and what passes when."""

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import outside, own_network
from tests.support.waiting import until

from cloche_server.isolation import netlink, syscalls
from cloche_server.node.messages import EgressPolicy
from cloche_server.node.network import Network
from cloche_server.node.slots import Block
from cloche_wire.errors import Internal

pytestmark = pytest.mark.needs("root", "nft")

SILENCE_S, PATIENCE_S = 0.4, 10.0
_TOTAL_RETRANSMITS = struct.Struct("100xI")
"""Of `struct tcp_info` (linux/tcp.h): tcpi_total_retrans."""
_ETH_P_IP = 0x0800
NO_POLICY = EgressPolicy()


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    with own_network.entered():
        yield


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(Block(26, -1), ())
    made.prepare({})
    yield made
    made.close()


@contextlib.contextmanager
def held(namespace: int) -> Iterator[int]:
    """Close a namespace's descriptor at the end."""
    try:
        yield namespace
    finally:
        os.close(namespace)


def connects(namespace: int, target: tuple[str, int], within_s: float = SILENCE_S) -> bool:
    """Whether a TCP connection from inside gets through; that it does not, is told by silence."""
    with inside(namespace) as made:
        made.settimeout(within_s)
        return made.connect_ex(target) == 0


def inside(namespace: int) -> socket.socket:
    """A socket as a program in there would have it."""
    with syscalls.network_namespace(namespace):
        return socket.socket()


@contextlib.contextmanager
def packets_leaving() -> Iterator[socket.socket]:
    """Sees every packet of version 4 on the way to the world outside, and what comes from there."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP)) as made:
        made.bind((outside.NEAR, _ETH_P_IP))
        made.setblocking(False)
        yield made


def leaves(leaving: socket.socket) -> bool:
    """Whether any packet was seen since the last question; the kernel shows them in the call that sends."""
    seen = False
    with contextlib.suppress(BlockingIOError):
        while leaving.recv(2000):
            seen = True
    return seen


class Counts:
    """System calls of netlink, its messages and programs started, until read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sockets = self.sends = self.messages = self.programs = 0
        counts = self

        class Counted(socket.socket):
            def __init__(self, *arguments: int) -> None:
                counts.sockets += 1
                super().__init__(*arguments)

            def send(self, packed: bytes, flags: int = 0) -> int:  # type: ignore[override]
                counts.sends += 1
                rest = packed
                while rest:
                    counts.messages += 1
                    size = int.from_bytes(rest[:4], "little")
                    rest = rest[size + -size % 4 :]
                return super().send(packed, flags)

        def started(*_: object, **__: object) -> None:
            counts.programs += 1
            raise AssertionError("no program is started for a network without a policy")

        monkeypatch.setattr(netlink.socket, "socket", Counted)
        monkeypatch.setattr(subprocess, "Popen", started)

    def of(self, act: Callable[[], object]) -> tuple[int, int, int, int]:
        """Sockets, sends, messages and programs of one act."""
        self.sockets = self.sends = self.messages = self.programs = 0
        act()
        return self.sockets, self.sends, self.messages, self.programs


def made(network: Network, slot: int, policy: EgressPolicy | None = None) -> int:
    """A slot's network, whose namespace the caller closes; offline where no policy is given."""
    namespace = network.new_namespace()
    try:
        if policy is None:
            network.wire(slot, namespace)
        else:
            network.create(slot, namespace, policy, online=True)
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def test_a_network_costs_few_messages_and_no_program(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, since a clock on a busy machine says little: a network is two batches and two questions."""
    with monkeypatch.context() as patched, contextlib.ExitStack() as stack:
        counts = Counts(patched)
        assert counts.of(lambda: stack.enter_context(held(made(network, 3)))) == (2, 4, 10, 0)
        assert counts.of(lambda: network.set_policy(3, NO_POLICY, online=True)) == (1, 1, 1, 0)
        assert counts.of(lambda: network.set_online(3, online=False)) == (1, 1, 1, 0)
        assert counts.of(lambda: network.remove(3)) == (1, 1, 1, 0)
        assert counts.of(network.sweep) == (1, 1, 1, 0)


def test_nothing_passes_before_the_policy_is_set(network: Network, tmp_path: Path) -> None:
    """Of a network made ahead not one packet leaves this machine; it is online at once when it is told."""
    with outside.played(tmp_path), held(made(network, 3)) as namespace:
        with packets_leaving() as leaving:
            assert not connects(namespace, (outside.PUBLIC, outside.PORT))
            assert not leaves(leaving)
            network.set_policy(3, NO_POLICY, online=True)
            assert connects(namespace, (outside.PUBLIC, outside.PORT), within_s=PATIENCE_S)
            assert leaves(leaving)
        network.remove(3)
        assert not connects(namespace, (outside.PUBLIC, outside.PORT))


def test_the_first_packet_of_a_network_made_just_now_passes(network: Network, tmp_path: Path) -> None:
    """Without `netlink.settle` some 7 of 60 were lost, and would be sent again after a second only."""
    with outside.played(tmp_path):
        for slot in range(60):
            with held(made(network, slot, NO_POLICY)) as namespace, inside(namespace) as connection:
                connection.settimeout(PATIENCE_S)
                connection.connect((outside.PUBLIC, outside.PORT))
                # Not by the clock: the kernel knows what it has sent more than once.
                told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANSMITS.size)
                assert _TOTAL_RETRANSMITS.unpack(told) == (0,), slot
                network.remove(slot)


def test_a_policy_holds_from_the_first_packet(network: Network, tmp_path: Path) -> None:
    """What is made at once with a policy is never without it."""
    denies = EgressPolicy(deny=(f"{outside.PUBLIC}/32",))
    with outside.played(tmp_path), held(made(network, 3, denies)) as namespace:
        assert not connects(namespace, (outside.PUBLIC, outside.PORT))
        assert connects(namespace, (outside.PUBLIC_TOO, outside.PORT), within_s=PATIENCE_S)
        network.remove(3)
        with held(made(network, 4, NO_POLICY)) as other:
            assert connects(other, (outside.PUBLIC, outside.PORT), within_s=PATIENCE_S)
            network.remove(4)


def test_a_slot_is_used_again_while_something_holds_its_last_namespace(network: Network) -> None:
    """An open connection that the edge dialled keeps a namespace, and with it the pair, until it is swept."""
    with held(made(network, 3)):
        network.remove(3)
        with held(made(network, 3)) as second:
            network.sweep()
            assert network.leftovers() == {3}
            with syscalls.network_namespace(second):
                assert {name for _, name in socket.if_nameindex()} == {"lo", "eth0"}
            network.remove(3)
            network.sweep()
            assert network.leftovers() == set()


def test_networks_of_a_node_that_is_gone_are_found_and_removed(network: Network) -> None:
    """Those whose namespace lives still; the others go by themselves, and removing them is no error."""
    with held(made(network, 3)), contextlib.ExitStack() as stack:
        stack.enter_context(held(made(network, 4)))
        following = Network(Block(26, -1), ())
        assert following.leftovers() == {3, 4}
        assert Network(Block(5, -1), ()).leftovers() == set()
        stack.close()
        for slot in (3, 4):
            following.remove(slot)
        following.sweep()
        following.sweep()
        until(lambda: following.leftovers() == set(), within_s=10, what="the kernel's own end of a pair")


def test_what_cannot_be_made_leaves_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the last message is refused: both ends are there by then."""
    refused = netlink.Message("add neighbour", 9999, 0, b"")
    monkeypatch.setattr(netlink, "add_neighbour", lambda *_: refused)
    with pytest.raises(Internal, match=r"cannot make the network of slot 3: .* add neighbour"):
        made(network, 3, NO_POLICY)
    until(lambda: network.leftovers() == set(), within_s=10, what="the end of the pair")


@pytest.mark.needs("userns")
def test_the_namespace_may_be_made_by_another_process_in_another_user_namespace(tmp_path: Path) -> None:
    """All after its making takes a descriptor, and settings are written whoever owns it."""
    argv = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 60"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as maker, outside.played(tmp_path):
        assert maker.stdout is not None
        maker.stdout.readline()
        network = Network(Block(26, -1), ())
        network.prepare({})
        with held(os.open(f"/proc/{maker.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as namespace:
            network.create(3, namespace, NO_POLICY, online=True)
            assert connects(namespace, (outside.PUBLIC, outside.PORT), within_s=PATIENCE_S)
            with syscalls.network_namespace(namespace):
                assert Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").read_text() == "1\n"
                assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == "0\n"
        network.remove(3)
        network.close()
        maker.kill()
