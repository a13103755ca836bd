"""The way through the agent to services that listen on loopback only."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
from collections.abc import Callable, Generator
from hashlib import sha256
from pathlib import Path

import pytest
from tests.support.waiting import until
from tests.unit.agent.running_agent import TOKEN, Agent

UPGRADE = {"Connection": "Upgrade", "Upgrade": "tcp", "X-Access-Token": TOKEN}
MANY_BYTES = 100 << 20
Act = Callable[[socket.socket], None]


@contextlib.contextmanager
def _service(act: Act, host: str = "127.0.0.1") -> Generator[int]:
    """A service that takes one connection; its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(20)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                act(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(20)
            assert not thread.is_alive()


def _tunnel(agent: Agent, port: int, early: bytes = b"") -> socket.socket:
    """An open way to a port of the sandbox, the answer's head read."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(agent.socket_path))
    head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
    client.sendall(f"GET /forward/{port} HTTP/1.1\r\nHost: h\r\n{head}\r\n".encode() + early)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        piece = client.recv(1)
        assert piece, answer
        answer += piece
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"), answer
    assert b"upgrade: tcp\r\n" in answer
    return client


def _read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def _echo_backwards(connection: socket.socket) -> None:
    connection.sendall(_read_all(connection)[::-1])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_service_on_loopback_is_reached_and_hears_the_end_of_what_is_sent(agent: Agent, host: str) -> None:
    with _service(_echo_backwards, host) as port, _tunnel(agent, port, early=b"ear") as client:
        client.sendall(b"ly")
        client.shutdown(socket.SHUT_WR)
        assert _read_all(client) == b"ylrae"


def test_a_service_may_end_first_and_still_hears(agent: Agent) -> None:
    heard: list[bytes] = []

    def act(connection: socket.socket) -> None:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        heard.append(_read_all(connection))

    with _service(act) as port, _tunnel(agent, port) as client:
        assert _read_all(client) == b"hello"
        client.sendall(b"thanks")
    assert heard == [b"thanks"]


def test_much_goes_through_both_ways_unchanged(agent: Agent) -> None:
    block = os.urandom(1 << 20)
    wanted = sha256()
    for _ in range(MANY_BYTES // len(block)):
        wanted.update(block)

    def act(connection: socket.socket) -> None:
        seen = sha256()
        while piece := connection.recv(1 << 18):
            seen.update(piece)
            connection.sendall(piece)
        assert seen.digest() == wanted.digest()

    with _service(act) as port, _tunnel(agent, port) as client:

        def send() -> None:
            for _ in range(MANY_BYTES // len(block)):
                client.sendall(block)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        seen = sha256()
        while piece := client.recv(1 << 18):
            seen.update(piece)
        sender.join()
        assert seen.digest() == wanted.digest()


def test_a_service_waits_for_a_client_that_does_not_read(agent: Agent) -> None:
    waits = threading.Event()
    sent = 0

    def act(connection: socket.socket) -> None:
        nonlocal sent
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += connection.send(bytes(1 << 16))
        waits.set()

    with _service(act) as port, _tunnel(agent, port):
        assert waits.wait(20)
    assert 0 < sent < 32 << 20


@pytest.mark.parametrize("who", ["client", "service"])
def test_when_one_end_breaks_the_other_is_ended(agent: Agent, who: str) -> None:
    ends: list[bytes] = []

    def act(connection: socket.socket) -> None:
        if who == "service":
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        else:
            connection.sendall(b"x")
            ends.append(_read_all(connection))

    with _service(act) as port, _tunnel(agent, port) as client:
        if who == "service":
            client.sendall(b"x")
            ends.append(_read_all(client))
        else:
            assert client.recv(1) == b"x"
            client.close()
    assert ends == [b""]


def test_no_connection_is_left_behind(agent: Agent) -> None:
    def held() -> int:
        count = 0
        for link in Path(f"/proc/{agent.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                count += str(link.readlink()).startswith("socket:")
        return count

    before = held()
    for _ in range(20):
        with _service(_echo_backwards) as port, _tunnel(agent, port) as client:
            client.sendall(b"x")
    until(lambda: held() <= before, within_s=10, what="descriptors of the tunnels are closed")


def _asked(agent: Agent, target: str, **headers: str) -> tuple[int, bytes]:
    with contextlib.closing(agent.connection()) as connection:
        connection.request("GET", target, headers={**UPGRADE, **headers})
        answer: http.client.HTTPResponse = connection.getresponse()
        return answer.status, answer.read()


def test_a_port_that_nothing_listens_on_is_told_so(agent: Agent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    message = f"nothing listens on this port: {port}"
    assert _asked(agent, f"/forward/{port}") == (502, f'{{"code":502,"message":"{message}"}}'.encode())


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "x", "80/", "٣", "9" * 30])
def test_what_is_no_port_is_refused(agent: Agent, port: str) -> None:
    assert _asked(agent, f"/forward/{port.encode().hex(chr(37)) if not port.isascii() else port}")[0] == 400


def test_without_the_token_or_the_upgrade_there_is_no_way(agent: Agent) -> None:
    with _service(lambda connection: connection.close()) as port:
        assert _asked(agent, f"/forward/{port}", **{"X-Access-Token": "wrong"})[0] == 401
        assert _asked(agent, f"/forward/{port}", Upgrade="websocket")[0] == 400
        assert agent.request("GET", f"/forward/{port}").status == 400
        assert agent.request("POST", f"/forward/{port}").status == 404
        _tunnel(agent, port).close()
