"""What the agent keeps of what has happened."""

from __future__ import annotations

import json
import logging

from tests.unit.agent.running_agent import Agent

from cloche_agent.activity import (
    LARGEST_FIELD,
    LARGEST_MESSAGE,
    MAX_BYTES,
    MAX_ENTRIES,
    Activity,
    ActivityHandler,
    program_of,
)


def entries(activity: Activity) -> list[dict[str, object]]:
    return json.loads(activity.since(0))


def test_entries_have_growing_times_and_come_from_a_time_on() -> None:
    activity = Activity()
    for number in range(50):
        activity.note("info", "process", "process started", pid=number)
    found = entries(activity)
    times = [int(str(entry["at_ms"])) for entry in found]
    assert times == sorted(set(times))
    assert found[0]["fields"] == {"pid": "0"}
    assert len(json.loads(activity.since(times[-2]))) == 2


def test_memory_is_bounded_in_number_and_in_bytes() -> None:
    activity = Activity()
    for _ in range(3 * MAX_ENTRIES):
        activity.note("info", "x", "y")
    assert len(entries(activity)) == MAX_ENTRIES
    for _ in range(2 * MAX_ENTRIES):
        activity.note("info", "x", "z" * 10_000, field="w" * 10_000)
    assert len(activity.since(0)) <= MAX_BYTES + MAX_ENTRIES + 2
    assert len(str(entries(activity)[-1]["message"])) == LARGEST_MESSAGE
    assert entries(activity)[-1]["fields"] == {"field": "w" * LARGEST_FIELD}


def test_of_a_command_only_the_program_is_kept() -> None:
    assert program_of("/usr/bin/python3", ["-c", "secret"]) == "python3"
    assert program_of("/bin/bash", ["-l", "-c", "curl -H 'token: secret' example.org"]) == "curl"
    assert program_of("/bin/bash", ["-l", "-c", "TOKEN=secret curl x"]) == "bash"
    assert program_of("/bin/bash", ["-l", "-c", ""]) == "bash"
    assert program_of("/bin/sh", []) == "sh"
    assert program_of("a\nb", []) == "?"


def test_warnings_of_the_agent_are_taken_over_without_their_trace() -> None:
    activity = Activity()
    logger = logging.Logger("test")
    logger.addHandler(ActivityHandler(activity))
    logger.info("unseen")
    try:
        raise ValueError("in the trace")
    except ValueError:
        logger.exception("lost track of process %d", 7)
    [entry] = entries(activity)
    assert (entry["level"], entry["logger"], entry["message"]) == (
        "error",
        "agent",
        "lost track of process 7",
    )
    assert b"in the trace" not in activity.since(0)


def test_processes_are_told_with_their_ends_and_without_their_secrets(agent: Agent) -> None:
    script = "cat secret-argument; exit 3"
    agent.run("/bin/bash", "-c", script, envs={"TOKEN": "secret-value"})
    raw = agent.request("GET", "/logs").body
    assert b"secret" not in raw
    found = [entry for entry in json.loads(raw) if entry["logger"] == "process"]
    started, ended = found
    assert started["message"] == "process started"
    assert started["fields"]["program"] == "cat"
    assert (ended["message"], ended["fields"]["exit_code"]) == ("process ended", "3")
    assert agent.request("GET", "/logs?since=x").status == 400
    assert agent.request("GET", "/logs", X_Access_Token="wrong").status == 401
