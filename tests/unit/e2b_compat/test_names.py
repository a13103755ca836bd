"""E2B's names over Cloche's client: what the documents print, against a server of canned answers."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable

import httpx
import pytest
from tests.fakes.sandbox_server import RECORD, SandboxServer, body_of, lines, process, stream, unary

import e2b
from cloche._config import Connection
from cloche._sync import client
from cloche_wire.execution import EndOfExecution, OutputMessage, Result
from cloche_wire.messages.process import DataEvent, ListResponse, ProcessInfo
from e2b import _loopback
from e2b_code_interpreter import Sandbox


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SandboxServer:
    made = SandboxServer()

    def new_http(connection: Connection) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(made), timeout=connection.request_timeout_s)

    monkeypatch.setattr(client, "new_http", new_http)
    monkeypatch.setenv("E2B_API_KEY", "e2b_key")
    made.on("POST /v2/sandboxes", httpx.Response(201, json=RECORD))
    made.on("DELETE /sandboxes/iabc", httpx.Response(204))
    return made


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Put the system's resolver back after the test, and record what it is asked for meanwhile."""
    asked: list[object] = []

    def system(host: object, *rest: object) -> list[object]:
        asked.append(host)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", system)
    monkeypatch.setattr(_loopback, "_installed", False)
    return asked


@pytest.mark.parametrize("make", [Sandbox, Sandbox.create], ids=["constructor", "create"])
def test_the_constructor_creates_and_the_block_ends(
    server: SandboxServer, make: Callable[..., Sandbox]
) -> None:
    with make(timeout=300, envs={"A": "b"}, secure=True) as sandbox:
        assert sandbox.sandbox_id == "iabc"
    assert body_of(server.requests[0]) == {
        "templateID": "code-interpreter-v1",
        "timeout": 300,
        "metadata": {},
        "envVars": {"A": "b"},
    }
    assert len(server.asked("DELETE /sandboxes/iabc")) == 1


def test_the_base_module_creates_from_the_base_template(server: SandboxServer) -> None:
    e2b.Sandbox()
    assert body_of(server.requests[0]) == {"templateID": "base", "metadata": {}, "envVars": {}}


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([OutputMessage("Hello, "), OutputMessage("E2B!\n")], "Hello, E2B!"),
        ([OutputMessage("printed\n"), Result(text="2", is_main_result=True)], "2"),
        ([OutputMessage("two\n\n")], "two\n"),
        ([OutputMessage("wrong\n", error=True), Result(text="shown")], None),
    ],
)
def test_text_falls_back_to_what_was_printed(
    server: SandboxServer, events: list[OutputMessage | Result], text: str | None
) -> None:
    server.on("POST /execute", lines(*events, EndOfExecution()))
    assert Sandbox().run_code("x").text == text


def test_read_gives_bytes_and_text_on_request(server: SandboxServer) -> None:
    server.on("GET /files", httpx.Response(200, content="ü".encode()))
    files = Sandbox().files
    assert files.read("/a") == "ü".encode()
    assert files.read("/a", text=True) == files.read("/a", "text") == "ü"


def test_set_timeout_after_the_block_only_warns(server: SandboxServer) -> None:
    server.on("POST /sandboxes/iabc/timeout", httpx.Response(204))
    with Sandbox() as sandbox:
        sandbox.set_timeout(60)
    with pytest.warns(RuntimeWarning, match="ended with its block"):
        sandbox.set_timeout(600)
    Sandbox.set_timeout("iabc", 600)
    bodies = [body_of(request) for request in server.asked("POST /sandboxes/iabc/timeout")]
    assert bodies == [{"timeout": 60}, {"timeout": 600}]


def test_set_timeout_of_a_sandbox_that_ended_otherwise_is_an_error(server: SandboxServer) -> None:
    server.on("POST /sandboxes/iabc/timeout", httpx.Response(404, json={"code": 404, "message": "gone"}))
    sandbox = Sandbox()
    with pytest.raises(e2b.SandboxNotFoundException):
        sandbox.set_timeout(600)


def test_get_host_waits_for_a_server_that_was_just_started(
    server: SandboxServer, resolver: list[object]
) -> None:
    row = b"   0: 00000000:1F40 00000000:0000 0A 00000000:00000000\n"
    server.on("POST /process.Process/List", unary(ListResponse([ProcessInfo(pid=7)])))
    server.on("POST /process.Process/Start", stream(*process()), stream(*process(DataEvent(stdout=row))))
    assert Sandbox().get_host(8000) == "8000-iabc.cloche.localhost:3000"
    assert len(server.asked("POST /process.Process/Start")) == 2


def test_get_host_does_not_wait_when_nothing_runs(server: SandboxServer, resolver: list[object]) -> None:
    server.on("POST /process.Process/List", unary(ListResponse()))
    assert Sandbox().get_host(8000) == "8000-iabc.cloche.localhost:3000"
    assert server.asked("POST /process.Process/Start") == []


def test_get_host_of_an_ended_sandbox_still_gives_the_name(
    server: SandboxServer, resolver: list[object]
) -> None:
    assert Sandbox().get_host(1) == "1-iabc.cloche.localhost:3000"


def test_names_under_localhost_are_this_machine_and_no_others(resolver: list[object]) -> None:
    _loopback.install()
    _loopback.install()
    for host in ("8000-i.cloche.localhost", "A.LOCALHOST.", b"b.localhost"):
        socket.getaddrinfo(host, 3000)
    socket.getaddrinfo("c.localhost", 3000, socket.AF_INET6)
    for host in ("localhost", "example.com", "localhost.example.com", "notlocalhost", None):
        socket.getaddrinfo(host, 3000)
    assert resolver[:4] == ["127.0.0.1", "127.0.0.1", "127.0.0.1", "::1"]
    assert resolver[4:] == ["localhost", "example.com", "localhost.example.com", "notlocalhost", None]


def test_without_such_a_domain_the_resolver_is_left_alone(
    server: SandboxServer, resolver: list[object]
) -> None:
    before = socket.getaddrinfo
    server.on("POST /v2/sandboxes", httpx.Response(201, json={**RECORD, "domain": "sandboxes.example"}))
    assert Sandbox().get_host(8000) == "8000-iabc.sandboxes.example"
    assert socket.getaddrinfo is before


@pytest.mark.parametrize("name", ["e2b", "e2b_code_interpreter"])
def test_every_exported_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert all(hasattr(module, exported) for exported in module.__all__)
