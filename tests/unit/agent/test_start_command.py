"""The template's own program: started once, by whichever request comes first, and waited for by one."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import until
from tests.unit.agent.running_agent import TOKEN, Agent, PortAgent, agent_on_ports, own_name, running_agent


def settings(folder: Path, start: str, ready: str = "", **more: object) -> str:
    return json.dumps(
        {
            "envVars": {"OWN": "variable"},
            "defaultUser": own_name(),
            "defaultWorkdir": str(folder),
            "startCmd": start,
            "readyCmd": ready,
            **more,
        }
    )


def prepare(agent: PortAgent, folder: Path, start: str, ready: str = "") -> Any:
    """As the node does: the answer to its second request, once the first was taken."""
    begun = agent.request("POST", "/prepare", settings(folder, start, ready, imports=[]))
    assert begun.status == 204, begun.body
    return agent.request("POST", "/ready")


def init(agent: Agent, folder: Path, start: str, ready: str = "") -> None:
    answer = agent.request("POST", "/init", settings(folder, start, ready, accessToken=TOKEN))
    assert answer.status == 204, answer.body


def listed(agent: Agent) -> list[list[str]]:
    found = agent.call("process.Process/List", {}).json.get("processes", [])
    return [[one["config"]["cmd"], *one["config"]["args"]] for one in found]


def runs_once(folder: Path) -> str:
    return f"echo $OWN $PWD >> {folder}/began; exec sleep 60"


def test_one_that_is_prepared_runs_and_is_ready_before_anybody_has_it(tmp_path: Path) -> None:
    """And the first `/init` does not start it again."""
    start, ready = runs_once(tmp_path), f"test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}"
    ready += f"; test -s {tmp_path}/began"
    with agent_on_ports(tmp_path) as agent:
        agent.token = None
        assert prepare(agent, tmp_path, start, ready).status == 204
        assert (tmp_path / "again").exists()
        agent.token = TOKEN
        init(agent, tmp_path, start, ready)
        assert listed(agent) == [["/bin/bash", "-l", "-c", start]]
        assert (tmp_path / "began").read_text() == f"variable {tmp_path}\n"


@pytest.mark.parametrize(("start", "status"), [("exit 3", 503), ("exit 0", 204)])
def test_one_that_fails_before_it_is_ready_is_not_prepared(tmp_path: Path, start: str, status: int) -> None:
    """Twin: one that has done its work and ended is ready."""
    pid = tmp_path / "pid"
    has_ended = f"until test -s {pid}; do sleep 0.01; done; while kill -0 $(cat {pid}); do sleep 0.01; done"
    with agent_on_ports(tmp_path) as agent:
        agent.token = None
        answer = prepare(agent, tmp_path, f"echo $$ > {pid}; {start}", f"{has_ended}; true")
        assert answer.status == status, answer.body


def test_a_cold_start_does_not_wait_for_it(tmp_path: Path) -> None:
    """It is started by the first `/init`, and not by the second one."""
    with running_agent(tmp_path, initialise=False) as agent:
        init(agent, tmp_path, runs_once(tmp_path), "false")
        init(agent, tmp_path, runs_once(tmp_path), "false")
        until((tmp_path / "began").exists, within_s=10, what="the start command")
        until((tmp_path / "began").read_text, within_s=10, what="its first words")
        assert len(listed(agent)) == 1
        assert (tmp_path / "began").read_text().count("\n") == 1


def test_who_has_a_sandbox_that_was_started_may_wait_for_it(tmp_path: Path) -> None:
    """With its token, which nobody but the node brings to that path."""
    go = tmp_path / "go"
    os.mkfifo(go)
    with running_agent(tmp_path, initialise=False) as agent:
        init(agent, tmp_path, f"cat {go}; touch {tmp_path}/up; exec sleep 60", f"test -e {tmp_path}/up")
        assert agent.request("POST", "/ready", X_Access_Token="wrong").status == 401
        assert not (tmp_path / "up").exists()
        threading.Timer(0.3, go.write_text, ["go"]).start()  # when it is being waited for, most likely
        assert agent.request("POST", "/ready").status == 204
        assert (tmp_path / "up").exists()


def test_what_it_prints_is_kept_within_bounds_and_it_can_be_ended(tmp_path: Path) -> None:
    """Nobody reads it, and it goes on all the same."""
    with running_agent(tmp_path, initialise=False) as agent:
        init(agent, tmp_path, "yes | head -c 2000000; exec sleep 60")
        (found,) = agent.call("process.Process/List", {}).json["processes"]
        until(lambda: _first_kept(agent, found["pid"]) >= 1_700_000, within_s=10, what="all that it prints")
        killing = {"process": {"pid": found["pid"]}, "signal": "SIGNAL_SIGKILL"}
        assert agent.call("process.Process/SendSignal", killing).status == 200
        until(lambda: listed(agent) == [], within_s=10, what="its end")


def _first_kept(agent: Agent, pid: int) -> int:
    """Offset of the first byte of its output that is still kept."""
    stream = agent.stream("process.Process/Connect", {"process": {"pid": pid}}, Cloche_Replay_From="0")
    offset = int(stream.header("Cloche-Replay-From") or "")
    stream.close()
    return offset


def test_a_reboot_starts_it_again(tmp_path: Path) -> None:
    with agent_on_ports(tmp_path) as agent:
        init(agent, tmp_path, runs_once(tmp_path))
        assert agent.request("POST", "/quiesce").status == 204
        until(lambda: listed(agent) == [], within_s=10, what="nothing that runs")
        assert agent.request("POST", "/init", "{}").status == 204
        assert len(listed(agent)) == 1


def test_one_that_cannot_be_started_is_told_and_the_sandbox_is_one_all_the_same(tmp_path: Path) -> None:
    with running_agent(tmp_path, initialise=False) as agent:
        answer = agent.request(
            "POST", "/init", json.dumps({"accessToken": TOKEN, "startCmd": "x", "defaultUser": "no-such"})
        )
        assert answer.status == 204
        assert b"start command failed" in agent.request("GET", "/logs").body
