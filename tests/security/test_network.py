"""Boundary: the network. Public addresses are reached; private ones, the host and other sandboxes are not."""

import socket
import subprocess
from collections.abc import Iterator

import pytest
from tests.support import outside
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox, Pair, connect_options
from tests.support.inside import python, root, run
from tests.support.outside import Outside
from tests.support.server import Server
from tests.support.waiting import until

from cloche import Sandbox

pytestmark = NEEDS_A_SERVER

_PROBE = """
import concurrent.futures, socket, sys
def reach(target):
    address, port = target.rsplit(':', 1)
    try:
        socket.create_connection((address, int(port)), 2).close()
    except OSError:
        return None
    return target
with concurrent.futures.ThreadPoolExecutor(512) as pool:
    print(*filter(None, pool.map(reach, sys.stdin.read().split())))
"""


def reachable(sandbox: object, targets: list[str]) -> set[str]:
    """Which of `address:port` the sandbox can connect to."""
    sandbox.files.write("/tmp/targets", "\n".join(targets))  # type: ignore[attr-defined]
    sandbox.files.write("/tmp/reach.py", _PROBE)  # type: ignore[attr-defined]
    done = run(sandbox, "python3 /tmp/reach.py < /tmp/targets")  # type: ignore[arg-type]
    assert done.code == 0, done
    return set(done.out.split())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with outside.played(tmp_path_factory.mktemp("outside")) as played:
        yield played


@pytest.fixture
def networked(server: Server) -> Iterator[MakeSandbox]:
    """Make sandboxes with network options in the spelling of the wire; they are gone at the end."""
    made: list[Sandbox] = []

    def make(**network: object) -> Sandbox:
        answer = server.request("POST", "/v2/sandboxes", json={"templateID": "base", "network": network})
        assert answer.status_code == 201, answer.text
        made.append(connect_options(server, Sandbox.connect, answer.json()["sandboxID"]))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.kill()


def test_public_hosts_are_reached_and_private_ones_are_not(pair: Pair, world: Outside) -> None:
    """Battery 43: of six addresses beyond this machine, the listener hears of the public one only."""
    targets = [f"{address}:{outside.PORT}" for address in (outside.PUBLIC, *outside.DENIED)]
    before = len(world.reached())
    for address in (outside.PUBLIC, *outside.DENIED):
        socket.create_connection((address, outside.PORT), 5).close()  # twin: this machine reaches all of them
    assert len(world.reached()) == before + len(targets)
    assert reachable(pair.a, targets) == {f"{outside.PUBLIC}:{outside.PORT}"}
    assert world.reached(after=before + len(targets)) == [outside.PUBLIC]


def test_metadata_and_the_servers_own_port_are_not_reached(pair: Pair, server: Server) -> None:
    """Battery 43: link-local metadata, and the control plane by every address of this machine."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        addresses = ["127.0.0.1", "169.254.169.254", "0.0.0.0", *_own_addresses()]
        targets = [f"{address}:{number}" for address in addresses for number in (port, server.port, 80)]
        assert reachable(pair.a, targets) == set()
        socket.create_connection(("127.0.0.1", port), 5).close()  # twin: the listener listens


def test_the_gateway_offers_nothing_but_names(pair: Pair) -> None:
    """Battery 43: of the gateway's first 1,024 ports and the server's, at most the name service answers."""
    gateway = root(pair.a, "ip -4 route show default").out.split()[2]
    open_ports = reachable(pair.a, [f"{gateway}:{port}" for port in range(1, 1025)])
    assert open_ports <= {f"{gateway}:53"}
    assert run(pair.a, f"ping -c 1 -W 2 {gateway}").code in (0, 127)  # twin: the gateway is there


def test_sandboxes_do_not_reach_each_other(pair: Pair, server: Server) -> None:
    """Battery 44: a service of B is closed to A, by TCP and by ping, and open through the edge."""
    address = run(pair.b, "hostname -I").out.split()[0]
    serving = pair.b.commands.run("python3 -m http.server 8000 --bind 0.0.0.0", background=True)
    ready = "timeout 20 sh -c 'until curl -s http://127.0.0.1:8000 > /dev/null; do sleep 0.1; done'"
    assert run(pair.b, ready).code == 0
    assert reachable(pair.a, [f"{address}:{port}" for port in (8000, 49983, 49999, 22, 80)]) == set()
    assert run(pair.a, f"ping -c 1 -W 1 {address}").code != 0
    target = {"E2b-Sandbox-Id": pair.b.sandbox_id, "E2b-Sandbox-Port": "8000"}
    assert server.request("GET", "/", headers=target).status_code == 200  # twin
    serving.kill()


def test_no_foreign_address_can_be_taken(pair: Pair) -> None:
    """Battery 45 in part: addresses, routes and raw sockets are not root's to change."""
    for command in ("ip addr add 10.1.2.3/24 dev eth0", "ip link set eth0 down", "ip route del default"):
        assert root(pair.a, command).code != 0
    raw = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"
    assert python(pair.a, raw, user="root").code != 0
    assert root(pair.a, "ip -4 addr show eth0").code == 0  # twin


def test_version_6_leads_nowhere(pair: Pair) -> None:
    """Battery 46 in part: there is no address of version 6 but the loopback's, hence no way out by it."""
    shown = root(pair.a, "ip -6 addr show scope global; ip -6 route show default").out
    assert shown == ""
    assert root(pair.a, "ip -4 route show default").out  # twin


def test_without_internet_nothing_leaves(sandboxes: MakeSandbox, pair: Pair, world: Outside) -> None:
    """Battery 47: TCP, ping and names are dead; loopback lives; a neighbour still has its internet."""
    offline = sandboxes(allow_internet_access=False)
    before = len(world.reached())
    assert reachable(offline, [f"{outside.PUBLIC}:{outside.PORT}"]) == set()
    assert world.reached(after=before) == []
    assert run(offline, f"ping -c 1 -W 1 {outside.PUBLIC}").code != 0
    assert run(offline, "timeout 10 getent hosts example.org").code != 0
    echo = "from socket import *; s = create_server(('127.0.0.1', 0)); create_connection(s.getsockname(), 2)"
    assert python(offline, echo).code == 0  # twin
    assert reachable(pair.a, [f"{outside.PUBLIC}:{outside.PORT}"])


def test_lists_hold_from_create_to_update(networked: MakeSandbox, server: Server, world: Outside) -> None:
    """Battery 51, 52: lists hold as the official client gives them, an update acts at once."""
    one, other = f"{outside.PUBLIC}:{outside.PORT}", f"{outside.PUBLIC_TOO}:{outside.PORT}"
    listed = networked(denyOut=["0.0.0.0/0"], allowOut=[outside.PUBLIC])
    assert reachable(listed, [one, other]) == {one}
    path = f"/sandboxes/{listed.sandbox_id}/network"
    bad: list[dict[str, object]] = [
        {"allowOut": ["169.254.169.254/32"]},
        {"allowOut": ["10.0.0.0/8"]},
        {"allowOut": ["ok.test"]},
        {"denyOut": ["1.1.1.1/40"]},
        {"denyOut": [f"1.{number >> 8}.{number & 255}.1" for number in range(10_000)]},
    ]
    for body in bad:
        answer = server.request(
            "PUT",
            path,
            json=body,
        )
        assert (answer.status_code, answer.json()["code"]) == (400, 400), body
    assert reachable(listed, [one, other]) == {one}
    assert (
        server.request(
            "PUT",
            path,
            json={"denyOut": [outside.PUBLIC]},
        ).status_code
        == 204
    )
    assert reachable(listed, [one, other]) == {other}
    assert (
        server.request(
            "PUT",
            path,
            json={},
        ).status_code
        == 204
    )
    assert reachable(listed, [one, other]) == {one, other}


def test_an_update_outlives_every_process(sandboxes: MakeSandbox, server: Server, world: Outside) -> None:
    """What was answered 204 is enforced and shown after a kill -9 of the node and of the api."""
    sandbox = sandboxes()
    path = f"/sandboxes/{sandbox.sandbox_id}"
    target = f"{outside.PUBLIC}:{outside.PORT}"
    changed = server.request(
        "PUT",
        f"{path}/network",
        json={"denyOut": [outside.PUBLIC]},
    )
    assert changed.status_code == 204
    for name in ("node", "api"):
        server.kill_part(name)
        assert reachable(sandbox, [target]) == set()
    until(
        lambda: (
            server.request(
                "GET",
                path,
            ).status_code
            == 200
        ),
        within_s=20,
        what="the api",
    )
    shown = server.request(
        "GET",
        path,
    ).json()["network"]
    assert shown == {"allowPublicTraffic": True, "denyOut": [outside.PUBLIC]}
    assert (
        server.request(
            "PUT",
            f"{path}/network",
            json={},
        ).status_code
        == 204
    )
    assert reachable(sandbox, [target]) == {target}  # twin


_TLS_SERVICE = """
import http.server, ssl, subprocess
make = 'openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/k -out /tmp/c -days 2 -subj /CN=self'
subprocess.run(make.split(), check=True, capture_output=True)
class Says(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'by tls ' + self.headers['Host'].encode())
served = http.server.HTTPServer(('', 8443), Says)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain('/tmp/c', '/tmp/k')
served.socket = tls.wrap_socket(served.socket, server_side=True)
served.serve_forever()
"""


def test_ports_that_speak_tls_are_reached_by_tls(networked: MakeSandbox, server: Server) -> None:
    """`httpsPorts`: the edge encrypts again to a service with a certificate of its own, and only there."""
    sandbox = networked(httpsPorts=[8443, 8444], maskRequestHost="inner.test:${PORT}")
    sandbox.files.write("/tmp/service.py", _TLS_SERVICE)
    sandbox.commands.run("python3 /tmp/service.py", background=True)
    sandbox.commands.run("python3 -m http.server 8444", background=True)
    both = "curl -sk https://127.0.0.1:8443 | grep -q tls && curl -sS http://127.0.0.1:8444 > /dev/null"
    assert run(sandbox, f"timeout 30 sh -c 'until {both}; do sleep 0.1; done'").code == 0
    target = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8443"}
    answer = server.request("GET", "/", headers=target)
    assert (answer.status_code, answer.text) == (200, "by tls inner.test:8443")
    plain = server.request("GET", "/", headers=target | {"E2b-Sandbox-Port": "8444"})
    assert (plain.status_code, plain.json()["message"]) == (502, "The port does not speak TLS")


def _own_addresses() -> list[str]:
    shown = subprocess.run(
        ["ip", "-4", "-o", "addr", "show"], capture_output=True, text=True, check=True
    ).stdout
    return sorted({line.split()[3].split("/")[0] for line in shown.splitlines()})
