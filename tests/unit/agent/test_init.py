"""/init and what is refused before it, and the routes about the sandbox itself."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.agent.running_agent import TOKEN, Agent, running_agent


def test_nothing_but_health_answers_before_init(tmp_path: Path) -> None:
    with running_agent(tmp_path, initialise=False) as agent:
        assert agent.request("GET", "/health").status == 204
        for method, target in (("GET", "/envs"), ("GET", "/metrics"), ("GET", "/files?path=/etc/passwd"),
                               ("POST", "/process.Process/List"), ("GET", "/nope")):  # fmt: skip
            for token in (TOKEN, "", None):
                agent.token = token
                answer = agent.request(method, target, b"{}" if method == "POST" else None)
                assert (answer.status, answer.json["code"]) == (401, 401), target
        for body in (
            b"[]",
            b"{",
            b"{}",
            b'{"accessToken": 1}',
            b'{"accessToken": "t", "envVars": {"A=": "b"}}',
        ):
            assert agent.request("POST", "/init", body).status == 400


def test_second_init_needs_the_token_and_changes_the_environment(tmp_path: Path) -> None:
    with running_agent(tmp_path) as agent:
        again = json.dumps({"accessToken": "thief", "envVars": {"NEW": "1"}})
        assert agent.request("POST", "/init", again, X_Access_Token="thief").status == 401
        answer = agent.request("POST", "/init", json.dumps({"envVars": {"NEW": "1"}}))
        assert (answer.status, answer.headers["X-Envd-Version"]) == (204, "0.6.13")
        assert answer.headers["Cache-Control"] == "no-store"
        assert agent.request("GET", "/envs").json == {
            "E2B_SANDBOX": "true", "E2B_SANDBOX_ID": "isandbox", "E2B_TEMPLATE_ID": "template", "NEW": "1",
        }  # fmt: skip


def test_a_restored_agent_is_told_anew_with_its_old_token(tmp_path: Path) -> None:
    with running_agent(tmp_path) as agent:
        for wrong in (
            '{"restored": 1}',
            '{"restored": true, "hostname": "a b"}',
            '{"etcFiles": {"../x": ""}}',
        ):
            assert agent.request("POST", "/init", wrong).status == 400
        told = json.dumps({"restored": True, "accessToken": "new", "sandboxId": "ifork", "hostname": "ifork"})
        assert agent.request("POST", "/init", told, X_Access_Token="new").status == 401
        assert agent.request("POST", "/init", told).status == 204
        assert agent.request("GET", "/envs").status == 401
        agent.token = "new"
        envs = agent.request("GET", "/envs").json
        assert (envs["E2B_SANDBOX_ID"], envs["E2B_TEMPLATE_ID"]) == ("ifork", "template")
        assert envs["FROM_SANDBOX"] == "1"
        assert [entry["message"] for entry in agent.request("GET", "/logs").json] == [
            "sandbox started", "sandbox restored",
        ]  # fmt: skip


def test_wrong_or_missing_token_is_refused_everywhere(agent: Agent) -> None:
    for target in ("/metrics", "/envs", "/files?path=/etc/passwd", "/nope"):
        assert agent.request("GET", target, X_Access_Token="wrong").status == 401
    assert agent.call("process.Process/List", {}, X_Access_Token="wrong").json["code"] == 401


def test_unknown_path_is_not_found(agent: Agent) -> None:
    answer = agent.request("GET", "/nope")
    assert (answer.status, answer.json) == (404, {"code": 404, "message": "no such path: /nope"})


def test_metrics_have_every_field(agent: Agent) -> None:
    found = agent.request("GET", "/metrics").json
    assert set(found) == {
        "ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "mem_total_mib",
        "mem_used_mib", "disk_used", "disk_total",
    }  # fmt: skip
    assert 0 < found["mem_used"] < found["mem_total"]
    assert 0 < found["disk_used"] < found["disk_total"]


def test_metrics_are_held_against_the_limits_that_init_has_told(tmp_path: Path) -> None:
    with running_agent(tmp_path) as agent:
        for wrong in ('{"cpuCount": "2"}', '{"cpuCount": -1}', '{"memoryMib": true}'):
            assert agent.request("POST", "/init", wrong).status == 400
        limits = json.dumps({"cpuCount": 3, "memoryMib": 70_000})
        assert agent.request("POST", "/init", limits).status == 204
        found = agent.request("GET", "/metrics").json
        assert (found["cpu_count"], found["mem_total"]) == (3, 70_000 << 20)
        assert 0 <= found["cpu_used_pct"] <= 100
        assert 0 < found["mem_used"] <= found["mem_total"]


def test_pages_of_any_origin_may_call(agent: Agent) -> None:
    flight = agent.request(
        "OPTIONS", "/process.Process/List", Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="x-access-token",
    )  # fmt: skip
    assert flight.status == 204
    assert flight.headers["Access-Control-Allow-Headers"] == "x-access-token"
    for answer in (flight, agent.request("GET", "/envs"), agent.request("GET", "/nope")):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
