"""Ending what uses the most memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.support.waiting import until
from tests.unit.agent.running_agent import PortAgent, agent_on_ports, collect

AS = pytest.mark.parametrize("is_pid_1", [False, pytest.param(True, marks=pytest.mark.needs("root"))])
HOARD = "import sys, time; has = b'x' * (int(sys.argv[1]) << 20); open(sys.argv[2], 'w'); time.sleep(60)"


def _note(agent: PortAgent) -> str:
    entries = json.loads(agent.request("GET", "/logs?since=0").body)
    return next(entry["message"] for entry in entries if "memory" in entry["message"])


@AS
def test_the_largest_process_ends_and_no_other(tmp_path: Path, is_pid_1: bool) -> None:
    with agent_on_ports(tmp_path, is_pid_1=is_pid_1) as agent:
        agent.initialise(tmp_path)
        marks = [tmp_path / "large", tmp_path / "small"]
        large, small = (
            agent.start(sys.executable, "-c", HOARD, size, str(mark))
            for size, mark in zip(("80", "10"), marks, strict=True)
        )
        until(lambda: all(mark.exists() for mark in marks), within_s=20, what="what both hoard")
        assert agent.request("POST", "/relieve", X_Access_Token="wrong").status == 401
        answer = agent.request("POST", "/relieve")
        assert (answer.status, answer.body) == (204, b"")
        assert collect(large).end["status"] == "signal: killed"
        (left,) = agent.call("process.Process/List", {}).json["processes"]
        assert left["config"]["args"][2] == "10"
        assert "out of memory: ended process" in _note(agent)
        assert "python" in _note(agent)
        small.close()


@AS
def test_agent_alone_has_nothing_to_end(tmp_path: Path, is_pid_1: bool) -> None:
    with agent_on_ports(tmp_path, is_pid_1=is_pid_1) as agent:
        agent.initialise(tmp_path)
        assert agent.request("POST", "/relieve").status == 404
