"""Ending everything but the agent, for a pause that keeps files only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from tests.support.waiting import until
from tests.unit.agent.running_agent import TOKEN, PortAgent, agent_on_ports, collect

AS = pytest.mark.parametrize("is_pid_1", [False, pytest.param(True, marks=pytest.mark.needs("root"))])
PROCESSES = "set -- /proc/[0-9]*; echo $#"
"""By the shell itself: programs that it starts to look would be counted or not, as it happens."""


def _run(agent: PortAgent, code: str) -> bytes:
    status, lines = agent.interpret("POST", "/execute", json.dumps({"code": code}), TOKEN)
    assert status == 200, lines
    return lines


def _bind(agent: PortAgent, folder: Path) -> None:
    agent.initialise(folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert agent.request("POST", "/init", json.dumps({"envVars": {"PATH": path}})).status == 204


@AS
def test_every_process_kernel_and_context_ends_and_files_stay(tmp_path: Path, is_pid_1: bool) -> None:
    with agent_on_ports(tmp_path, is_pid_1=is_pid_1) as agent:
        _bind(agent, tmp_path)
        kept = tmp_path / "kept"
        _run(agent, f"x = 1; import pathlib; pathlib.Path({str(kept)!r}).write_text('files stay')")
        stream = agent.start("sh", "-c", "trap '' TERM INT HUP; sleep 60 & wait; sleep 60")
        assert agent.request("POST", "/quiesce", X_Access_Token="wrong").status == 401
        answer = agent.request("POST", "/quiesce")
        assert (answer.status, answer.body) == (204, b"")
        assert collect(stream).end["status"] == "signal: killed"
        assert agent.call("process.Process/List", {}).json == {}
        # And it goes on, as after its start.
        assert b"NameError" in _run(agent, "x")
        assert b'"text":"2"' in _run(agent, "1 + 1")
        assert kept.read_text() == "files stay"
        assert agent.run("echo", "hello").stdout == b"hello\n"


@pytest.mark.needs("root")
def test_orphans_and_daemons_end_too(tmp_path: Path) -> None:
    """Twin: before, the daemon is there."""
    with agent_on_ports(tmp_path, is_pid_1=True) as agent:
        _bind(agent, tmp_path)
        agent.run("sh", "-c", "setsid sh -c 'setsid sleep 60 & setsid sleep 60 &' >/dev/null 2>&1")
        alone = 2  # the agent, and the shell that looks

        def count() -> int:
            return int(agent.run("sh", "-c", PROCESSES).stdout)

        until(lambda: count() == alone + 2, within_s=10, what="two daemons")
        assert agent.request("POST", "/quiesce").status == 204
        assert count() == alone


@AS
def test_nothing_to_end_is_no_error(tmp_path: Path, is_pid_1: bool) -> None:
    with agent_on_ports(tmp_path, is_pid_1=is_pid_1) as agent:
        _bind(agent, tmp_path)
        for _ in range(2):
            assert agent.request("POST", "/quiesce").status == 204


def test_a_cell_that_runs_ends_with_an_error(tmp_path: Path) -> None:
    with agent_on_ports(tmp_path) as agent:
        _bind(agent, tmp_path)
        lines = _run(
            agent,
            f"""
import http.client
connection = http.client.HTTPConnection("127.0.0.1", {agent.envd})
connection.request("POST", "/quiesce", headers={{"X-Access-Token": {TOKEN!r}}})
connection.getresponse()
print("still here")
""",
        )
        assert b"UnexpectedEndOfExecution" in lines
        assert b"still here" not in lines
        assert b"end_of_execution" in lines
