"""The agent on TCP ports of its own, as where no socket can be handed into the sandbox."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.unit.agent.running_agent import FROM_OUTSIDE, TOKEN, WITHIN, PortAgent, Way, agent_on_ports

from cloche_agent.http import listen_on


@pytest.fixture
def agent(tmp_path: Path) -> Generator[PortAgent]:
    with agent_on_ports(tmp_path) as agent:
        yield agent


def test_both_services_tell_their_health_and_nothing_else_before_init(agent: PortAgent) -> None:
    assert agent.request("GET", "/health").status == 204
    assert agent.interpret("GET", "/health") == (200, b'"OK"')
    assert agent.request("GET", "/envs").status == 401
    assert agent.interpret("GET", "/contexts")[0] == 401
    assert agent.interpret("POST", "/execute", "{}")[0] == 401


def test_what_needs_the_token_needs_it_on_a_port_too(agent: PortAgent, tmp_path: Path) -> None:
    agent.initialise(tmp_path)
    assert agent.run("echo", "hello").stdout == b"hello\n"
    assert agent.interpret("POST", "/execute", '{"code": "1"}')[0] == 401
    agent.token = None
    for method, target in (("GET", "/envs"), ("GET", "/metrics"), ("GET", "/logs"), ("POST", "/init")):
        assert agent.request(method, target).status == 401
    agent.token = TOKEN
    assert agent.request("GET", "/envs").status == 200
    assert agent.request("POST", "/prepare", "{}").status == 404  # before /init only


def test_programs_of_the_sandbox_hold_no_listener(agent: PortAgent, tmp_path: Path) -> None:
    agent.initialise(tmp_path)
    assert b"socket:" not in agent.run("ls", "-l", "/proc/self/fd").stdout


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "way",
    [
        WITHIN,
        Way("127.0.0.1", FROM_OUTSIDE.agent),
        Way(FROM_OUTSIDE.agent, "127.0.0.1"),
        Way(FROM_OUTSIDE.agent, FROM_OUTSIDE.agent),
    ],
    ids="-".join,
)
def test_programs_of_the_sandbox_see_one_health_and_no_more(way: Way, tmp_path: Path) -> None:
    """Twin: from outside the same requests are served."""
    first = '{"accessToken": "a token of the programs"}'
    with agent_on_ports(tmp_path, is_pid_1=True) as agent:
        agent.way = way
        assert agent.interpret("GET", "/health") == (200, b'"OK"')
        for method, path in (("GET", "/contexts"), ("POST", "/execute")):
            assert agent.interpret(method, path, "{}")[0] == 404
        for method, path in (("GET", "/health"), ("POST", "/prepare"), ("POST", "/init"), ("GET", "/envs")):
            assert agent.request(method, path, first).status == 404
        agent.way = FROM_OUTSIDE
        assert agent.request("GET", "/health").status == 204
        agent.initialise(tmp_path)
        assert agent.interpret("GET", "/contexts", token=TOKEN)[0] == 200
        agent.way = way
        assert agent.request("GET", "/envs").status == 404  # also with the token


def test_a_port_that_is_taken_is_told_at_the_start() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "cloche_agent", "--envd-port", port, "--interpreter-port", port],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    assert done.returncode == 2
    assert "Address already in use" in done.stderr


@pytest.mark.anyio
async def test_small_answers_leave_at_once() -> None:
    """Twin: asyncio does not take a socket for TCP whose protocol is not named."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[socket.socket] = asyncio.Queue()

    class Accept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.put_nowait(transport.get_extra_info("socket"))

    async def delay_is_off(listener: socket.socket) -> bool:
        async with asyncio.timeout(20), await loop.create_server(Accept, sock=listener):
            with socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
                connection = await accepted.get()
                return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

    assert await delay_is_off(listen_on(0))
    plain = socket.socket()
    plain.bind(("127.0.0.1", 0))
    assert not await delay_is_off(plain)
