"""What sandboxes reach, seen from sockets inside their network."""

import asyncio
import contextlib
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address

import msgspec
import pytest
from tests.integration.node.conftest import NEEDS_A_NODE, RESOLVER, NodeProcess
from tests.support import outside

from cloche_server.node import messages, ruleset

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE]

QUESTION = struct.pack(">6H", 0x1234, 0x0100, 1, 0, 0, 0) + b"\x07example\x03com\x00\x00\x01\x00\x01"
REFUSED = 5
SILENCE_S = 0.4
"""How long a dropped packet is waited for; a passed one is answered in well under a millisecond."""
PATIENCE_S = 10.0
"""How long one is waited for that must pass: a busy machine keeps anybody from looking for a while."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[outside.Outside]:
    with outside.played(tmp_path_factory.mktemp("outside")) as played:
        yield played


@pytest.fixture(scope="module")
def resolver() -> Iterator[None]:
    """The host's name server: it sends each question back."""
    with socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind((RESOLVER, 53))

        def answer() -> None:
            while True:
                question, asker = bound.recvfrom(2000)
                if question == b"end":
                    return
                bound.sendto(question[:2] + b"\x81\x80" + question[4:], asker)

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        with socket.socket(type=socket.SOCK_DGRAM) as ending:
            ending.sendto(b"end", (RESOLVER, 53))
        thread.join()


async def reaches_only(
    node: NodeProcess,
    sandbox_id: str,
    expected: set[str],
    *targets: tuple[str, int],
    source: str = "0.0.0.0",
) -> None:
    """Claim which of the targets a TCP connection from inside gets through to."""
    loop = asyncio.get_running_loop()
    through: set[str] = set()

    async def connect(target: tuple[str, int]) -> None:
        with node.inside(sandbox_id) as connection, contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.bind((source, 0))
            async with asyncio.timeout(PATIENCE_S if target[0] in expected else SILENCE_S):
                await loop.sock_connect(connection, target)
            through.add(target[0])

    async with asyncio.TaskGroup() as tasks:
        for target in targets:
            tasks.create_task(connect(target))
    assert through == expected


def own_address(node: NodeProcess, sandbox_id: str) -> str:
    """The address that the sandbox's packets bear."""
    with node.inside(sandbox_id, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return probe.getsockname()[0]


def gateway(node: NodeProcess, sandbox_id: str) -> str:
    """The address that the sandbox has as its way out: the first of its block."""
    address = int(IPv4Address(own_address(node, sandbox_id)))
    return str(IPv4Address(address // 1024 * 1024 + 1))


def ask(node: NodeProcess, sandbox_id: str) -> int:
    """Ask the name server of the sandbox, and return the response code."""
    with node.inside(sandbox_id, socket.SOCK_DGRAM) as asking:
        asking.sendto(QUESTION, (gateway(node, sandbox_id), 53))
        answer = asking.recv(2000)
    assert answer[:2] == QUESTION[:2]
    return answer[3] & 0x0F


async def test_public_host_is_reached_online_and_not_offline(
    node: NodeProcess, world: outside.Outside
) -> None:
    """`allow_internet` is what decides, for the sandbox and not for its neighbour."""
    online, offline = await node.create(), await node.create(allow_internet=False)
    target = (outside.PUBLIC, outside.PORT)
    await reaches_only(node, online, {outside.PUBLIC}, target)
    await reaches_only(node, offline, set(), target)


async def test_denied_ranges_are_not_reached(node: NodeProcess, world: outside.Outside) -> None:
    """Private, link-local, shared and metadata addresses stay closed; the host has routes to them."""
    sandbox_id = await node.create()
    await reaches_only(node, sandbox_id, set(), *((address, outside.PORT) for address in outside.DENIED))
    assert set(world.reached()) <= {outside.PUBLIC}


async def test_mail_is_not_sent(node: NodeProcess, world: outside.Outside) -> None:
    """Port 25 is silent, where any other closed port of that host refuses."""
    sandbox_id = await node.create()
    loop = asyncio.get_running_loop()
    for port, expected, within_s in ((25, TimeoutError, SILENCE_S), (26, ConnectionRefusedError, PATIENCE_S)):
        with node.inside(sandbox_id) as connection:
            connection.setblocking(False)
            with pytest.raises(expected):
                async with asyncio.timeout(within_s):
                    await loop.sock_connect(connection, (outside.PUBLIC, port))


async def test_neighbour_and_host_are_not_reached(node: NodeProcess) -> None:
    """Neither another sandbox, nor a service of the host on any of its addresses."""
    one, other = await node.create(), await node.create()
    with node.inside(other) as theirs, socket.create_server(("0.0.0.0", 0)) as hosts:
        theirs.bind(("0.0.0.0", 8000))
        theirs.listen()
        address = own_address(node, other)
        port = hosts.getsockname()[1]
        await reaches_only(node, one, set(), (address, 8000), (gateway(node, one), port))
        await reaches_only(node, other, {address}, (address, 8000))


async def test_address_of_another_is_not_believed(node: NodeProcess, world: outside.Outside) -> None:
    """A packet that bears a neighbour's source address goes nowhere; so no wall can be passed by lying."""
    one, other = await node.create(allow_internet=False), await node.create()
    theirs = own_address(node, other)
    for sandbox_id, expected in ((one, set[str]()), (other, {outside.PUBLIC})):
        network = f"--net=/proc/{node.init(sandbox_id)}/ns/net"
        add = ["nsenter", network, "ip", "address", "replace", f"{theirs}/32", "dev", "eth0"]
        await asyncio.to_thread(subprocess.run, add, check=True)
        target = (outside.PUBLIC, outside.PORT)
        await reaches_only(node, sandbox_id, expected, target, source=theirs)


async def through(connection: socket.socket, within_s: float) -> bool:
    """Whether a word of an open connection still comes back."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    try:
        async with asyncio.timeout(within_s):
            await loop.sock_sendall(connection, b"ping")
            return await loop.sock_recv(connection, 4) == b"ping"
    except TimeoutError:
        return False


async def test_a_policy_allows_and_denies_and_touches_no_neighbour(
    node: NodeProcess, world: outside.Outside
) -> None:
    """Allow wins over deny; what neither names is allowed; who has no policy is as free as before."""
    hosts = (outside.PUBLIC, outside.PUBLIC_TOO)
    targets = [(host, outside.PORT) for host in hosts]
    nothing_but = messages.EgressPolicy((f"{outside.PUBLIC}/32",), ("0.0.0.0/0",))
    all_but = messages.EgressPolicy((), (f"{outside.PUBLIC}/32",))
    for policy, expected in (
        (nothing_but, {outside.PUBLIC}),
        (all_but, {outside.PUBLIC_TOO}),
        (messages.EgressPolicy(), set(hosts)),
    ):
        await reaches_only(node, await node.create(egress=policy), expected, *targets)


async def test_no_policy_opens_what_is_always_denied(node: NodeProcess, world: outside.Outside) -> None:
    """Battery 51: the node itself holds against an order that the api should not have given."""
    sandbox_id = await node.create(egress=messages.EgressPolicy(("0.0.0.0/0",)))
    denied = [(address, outside.PORT) for address in outside.DENIED]
    await reaches_only(node, sandbox_id, {outside.PUBLIC}, *denied, (outside.PUBLIC, outside.PORT))


@pytest.mark.parametrize("offline", [True, False])
async def test_a_new_policy_holds_for_open_connections(
    node: NodeProcess, world: outside.Outside, offline: bool
) -> None:
    """Neither direction passes any more, and both do again when the policy is taken back."""
    sandbox_id = await node.create()
    denies = messages.EgressPolicy((), (f"{outside.PUBLIC}/32",))
    with node.inside(sandbox_id) as connection:
        await asyncio.to_thread(connection.connect, (outside.PUBLIC, outside.ECHO_PORT))
        assert await through(connection, PATIENCE_S)
        changed = messages.SetEgress(sandbox_id) if offline else messages.SetEgress(sandbox_id, True, denies)
        await node.call("set_egress", msgspec.structs.replace(changed, allow_internet=not offline))
        assert not await through(connection, SILENCE_S)
        await reaches_only(node, sandbox_id, set(), (outside.PUBLIC, outside.PORT))
        await node.call("set_egress", messages.SetEgress(sandbox_id))
        await reaches_only(node, sandbox_id, {outside.PUBLIC}, (outside.PUBLIC, outside.PORT))
        connection.setblocking(True)
        connection.settimeout(10)
        assert await asyncio.to_thread(connection.recv, 4) == b"ping"  # sent again by now


async def test_a_policy_outlives_its_node(node: NodeProcess, world: outside.Outside) -> None:
    """The packet filter goes on without the node, and the next node loads the same again."""
    target = (outside.PUBLIC, outside.PORT)
    denies = messages.EgressPolicy((), (f"{outside.PUBLIC}/32",))
    made_so, changed, offline = await node.create(egress=denies), await node.create(), await node.create()
    await node.call("set_egress", messages.SetEgress(changed, True, denies))
    await node.call("set_egress", messages.SetEgress(offline, False))
    node.kill()
    for start_again in (False, True):
        if start_again:
            node.start()
        for sandbox_id in (made_so, changed, offline):
            await reaches_only(node, sandbox_id, set(), target)
    await node.call("set_egress", messages.SetEgress(made_so))
    await reaches_only(node, made_so, {outside.PUBLIC}, target)


async def test_one_sandbox_cannot_fill_the_table_of_connections(
    node: NodeProcess, world: outside.Outside
) -> None:
    """Battery 53: connections beyond the limit are dropped, and a neighbour's is made at once."""
    greedy, other = await node.create(), await node.create()
    with node.inside(greedy, socket.SOCK_DGRAM) as flood:
        for port in range(1024, 1024 + 2 * ruleset.MAX_CONNECTIONS):
            flood.sendto(b"", (outside.PUBLIC, port))
    target = (outside.PUBLIC, outside.PORT)
    await reaches_only(node, greedy, set(), target)
    await reaches_only(node, other, {outside.PUBLIC}, target)


async def test_names_are_resolved_online_and_refused_at_once_offline(
    node: NodeProcess, resolver: None
) -> None:
    """A program without internet fails on names, and does not hang on them."""
    online, offline = await node.create(), await node.create(allow_internet=False)
    assert await asyncio.to_thread(ask, node, online) == 0
    assert await asyncio.to_thread(ask, node, offline) == REFUSED


async def test_ports_below_1024_are_open_to_programs_inside(node: NodeProcess) -> None:
    """A tenant may serve on port 80 although its root is nobody to this network's owner."""
    sandbox_id = await node.create()
    with node.inside(sandbox_id) as listener:
        listener.bind(("0.0.0.0", 80))
        listener.listen()
        (await node.dial(sandbox_id, 80)).close()
