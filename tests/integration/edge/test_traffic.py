"""Public traffic into real sandboxes: cuts, private ports, WebSockets, https, slow clients."""

import socket
import ssl
import time
from collections.abc import Generator
from contextlib import contextmanager

import httpx
import pytest
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox, connect_options
from tests.support.server import Server
from tests.support.waiting import until

from cloche import Sandbox
from cloche_server.edge import tls

pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(120)]

SHOUT = """
import socket
listener = socket.create_server(('127.0.0.1', 8000))
while True:
    connection, _ = listener.accept()
    head = b''
    while b'\\r\\n\\r\\n' not in head:
        head += connection.recv(65536)
    if b'Upgrade: websocket' in head:
        connection.sendall(b'HTTP/1.1 101 x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n\\r\\n')
        while data := connection.recv(65536):
            connection.sendall(data.upper())
    else:
        body = b'' if head.startswith(b'HEAD') else b'ok'
        connection.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n' + body)
    connection.close()
"""
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket"}


@contextmanager
def raw(server: Server) -> Generator[socket.socket, None, None]:
    """A plain connection to the public port."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        yield connection


def request(sandbox: Sandbox, port: int, method: str = "GET", path: str = "/", **fields: str) -> bytes:
    """A request to a port of a sandbox, as bytes."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {port}-{sandbox.sandbox_id}.cloche.localhost"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def receive_all(connection: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    got = b""
    while data := connection.recv(65536):
        got += data
    return got


def start_shouting(sandbox: Sandbox) -> None:
    """Have a server on port 8000 of the sandbox's loopback."""
    sandbox.files.write("/tmp/shout.py", SHOUT)
    sandbox.commands.run("python3 /tmp/shout.py", background=True, timeout=0)


def status(server: Server, sandbox: Sandbox, method: str = "GET", **fields: str) -> int:
    """Ask port 8000 by its host name."""
    host = f"8000-{sandbox.sandbox_id}.cloche.localhost:{server.port}"
    answer = server.request(method, "/", key="", headers={"Host": host} | fields)
    return answer.status_code


def test_a_kill_cuts_a_running_cell_and_then_the_sandbox_is_not_found(server: Server) -> None:
    """Clients tell "killed while in progress" from "ended" by a cut connection and the 502 that follows."""
    made = server.request("POST", "/v2/sandboxes", json={"templateID": "code-interpreter-v1"}).json()
    sandbox = connect_options(server, Sandbox.connect, made["sandboxID"])
    code = b'{"code": "print(1, flush=True); import time; time.sleep(60)"}'
    fields = {"X-Access-Token": made["envdAccessToken"], "Content-Length": str(len(code))}
    head = request(sandbox, 49999, "POST", "/execute", **fields)
    with raw(server) as connection:
        connection.sendall(head + code)
        got = b""
        while b"1\\n" not in got:
            got += connection.recv(65536)
        sandbox.kill()
        with pytest.raises(ConnectionResetError):
            got += receive_all(connection)
    with raw(server) as connection:
        connection.sendall(request(sandbox, 49983, path="/health", Connection="close"))
        assert b"The sandbox was not found" in receive_all(connection)


def test_private_ports_need_the_token_for_every_method_and_for_websockets(server: Server) -> None:
    """Battery 54: 403 without the token, 200 and 101 with it."""
    body = {"templateID": "code-interpreter-v1", "network": {"allowPublicTraffic": False}}
    made = server.request("POST", "/v2/sandboxes", json=body).json()
    sandbox = connect_options(server, Sandbox.connect, made["sandboxID"])
    token = {"E2b-Traffic-Access-Token": made["trafficAccessToken"]}
    start_shouting(sandbox)
    until(lambda: status(server, sandbox, **token) == 200, within_s=30, what="the service")
    assert status(server, sandbox) == 403
    assert status(server, sandbox, "HEAD") == 403
    assert status(server, sandbox, "HEAD", **token) == 200
    for fields, expected in ((UPGRADE, b"HTTP/1.1 403"), (UPGRADE | token, b"HTTP/1.1 101")):
        with raw(server) as connection:
            connection.sendall(request(sandbox, 8000, **fields))
            assert connection.recv(65536).startswith(expected)
    sandbox.kill()


def test_a_websocket_passes_and_ends_with_its_sandbox(server: Server, sandboxes: MakeSandbox) -> None:
    """After the upgrade bytes pass both ways; the end of the sandbox ends them."""
    sandbox = sandboxes()
    start_shouting(sandbox)
    until(lambda: status(server, sandbox) == 200, within_s=30, what="the service")
    with raw(server) as connection:
        connection.sendall(request(sandbox, 8000, **UPGRADE))
        assert connection.recv(65536).endswith(b"\r\n\r\n")
        connection.sendall(b"hello")
        assert connection.recv(65536) == b"HELLO"
        sandbox.kill()
        with pytest.raises(ConnectionResetError):
            connection.recv(65536)


def test_https_on_the_same_port_is_trusted_with_the_servers_bundle(
    server: Server, sandboxes: MakeSandbox
) -> None:
    """What `getHost` names can be opened by https, by a client that knows the bundle."""
    sandbox = sandboxes()
    context = ssl.create_default_context(cafile=str(tls.files(server.state / "tls").bundle))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    name = f"49983-{sandbox.sandbox_id}.cloche.localhost"
    with raw(server) as plain, context.wrap_socket(plain, server_hostname=name) as connection:
        connection.sendall(request(sandbox, 49983, path="/health"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 204")
    answer = httpx.get(f"https://localhost:{server.port}/nowhere", verify=context, trust_env=False)
    assert answer.status_code in {401, 404}


def test_200_slow_clients_hold_nobody_up_and_are_closed(server: Server, sandboxes: MakeSandbox) -> None:
    """Battery 70: connections that trickle a head end within 15 s, others are served meanwhile."""
    sandbox = sandboxes()
    began = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(200)]
    for connection in slow:
        connection.sendall(b"G")
    waits: list[float] = []
    for _ in range(20):
        at = time.monotonic()
        assert sandbox.commands.run("true").exit_code == 0
        waits.append(time.monotonic() - at)
    assert max(waits) < 1
    for connection in slow:
        while connection.recv(65536):
            pass
        connection.close()
    assert time.monotonic() - began < 15
