"""Logs of sandboxes: fetched from agents that may say anything, and kept a while after the end."""

import asyncio
import json
import re
from typing import Any

import pytest

from cloche_server.node import create, kill
from cloche_server.node.logs import KEPT_S, LARGEST_MESSAGE, MAX_ENTRIES, MAX_FIELDS, LogKeeper, checked
from cloche_server.node.machine import Machine
from cloche_server.node.messages import LogEntry, LogsQuery
from cloche_wire.errors import Internal, SandboxNotFound

from .conftest import Node, request_for

pytestmark = pytest.mark.anyio


def said(**changes: Any) -> dict[str, Any]:
    return {
        "at_ms": 1_000, "level": "info", "logger": "process", "message": "process started",
        "fields": {"pid": "7"},
    } | changes  # fmt: skip


def answer(node: Node, *entries: dict[str, Any]) -> None:
    """Let the agents of this node say this."""
    body = json.dumps(entries).encode()
    node.driver.status = b"200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def alive(node: Node, machine: Machine, letter: str = "a") -> tuple[LogKeeper, str]:
    keeper = LogKeeper(machine)
    machine.before_removal = keeper.keep_last
    request = request_for(letter)
    await create.create(machine, request)
    return keeper, request.sandbox_id


async def test_a_log_is_what_the_agent_says_in_order_of_time(node: Node) -> None:
    async with node.machine() as machine:
        keeper, sandbox = await alive(node, machine)
        answer(node, said(at_ms=5, message="b"), said(at_ms=3, message="a"))
        found = await keeper.query(LogsQuery(sandbox))
        assert [(entry.at_ms, entry.message) for entry in found] == [(3, "a"), (5, "b")]
        assert found[0].fields == {"pid": "7"}
        assert [entry.at_ms for entry in await keeper.query(LogsQuery(sandbox, since_ms=4))] == [5]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"{}", b"null", b"[" * 100_000, b"\xff", b'"x"', b"[1, null, [], {}]", b'[{"at_ms": 1e400}]'],
)
def test_what_is_no_log_is_dropped(raw: bytes) -> None:
    assert checked(raw) == []


@pytest.mark.parametrize(
    "change",
    [
        {"at_ms": -1},
        {"at_ms": 10**18},
        {"at_ms": "5"},
        {"at_ms": 10**400},
        {"level": "fatal"},
        {"level": None},
        {"message": 7},
        {"logger": []},
        {"fields": {"a": 1}},
        {"fields": []},
    ],
)
def test_an_entry_of_another_shape_is_dropped_and_the_others_stay(change: dict[str, Any]) -> None:
    found = checked(json.dumps([said(**change), said(message="kept")]).encode())
    assert [entry.message for entry in found] == ["kept"]


def test_entries_are_bounded_and_cannot_play_with_a_terminal() -> None:
    nasty = "\x1b[2J\r\n\x00\x9b\u202e\u2028ok"
    fields = {f"{nasty}{n}": nasty for n in range(100)}
    [entry] = checked(json.dumps([said(message=nasty + "x" * 10_000, logger=nasty, fields=fields)]).encode())
    for text in (entry.message, entry.logger, *entry.fields, *entry.fields.values()):
        assert re.search("[\x00-\x1f\x7f-\x9f\u2028\u202e]", text) is None
        assert "ok" in text
    assert entry.logger.startswith("\\u001b[2J\\u000d\\u000a")
    assert len(entry.message) <= 6 * LARGEST_MESSAGE
    assert len(entry.fields) == MAX_FIELDS
    many = checked(json.dumps([said(at_ms=n) for n in range(2 * MAX_ENTRIES)]).encode())
    assert [many[0].at_ms, len(many)] == [MAX_ENTRIES, MAX_ENTRIES]


async def test_an_agent_that_refuses_breaks_or_talks_without_end_is_an_error(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloche_server.node.logs.LIVE_TIMEOUT_S", 0.2)
    async with node.machine() as machine:
        keeper, sandbox = await alive(node, machine)
        endless = b"200 OK\r\ncontent-length: 9999999\r\n\r\n" + b"x" * 2_000_000
        for status in (
            b"500 No\r\ncontent-length: 0",
            b"",
            b"200 OK\r\ncontent-length: 50\r\n\r\nab",
            endless,
        ):
            node.driver.status = status
            with pytest.raises(Internal, match="the agent"):
                await keeper.query(LogsQuery(sandbox))


async def test_the_log_of_an_ended_sandbox_is_kept_with_its_reason_for_a_while(node: Node) -> None:
    async with node.machine() as machine:
        keeper, sandbox = await alive(node, machine)
        answer(node, said(at_ms=5))
        await kill.end(machine, sandbox, "timeout")
        found = await keeper.query(LogsQuery(sandbox))
        assert [entry.message for entry in found] == ["process started", "sandbox ended"]
        assert found[-1].fields == {"reason": "timeout"}
        node.clock.elapsed_s += KEPT_S + 1
        with pytest.raises(SandboxNotFound):
            await keeper.query(LogsQuery(sandbox))


async def test_a_sandbox_that_died_by_itself_leaves_the_reason(node: Node) -> None:
    async with node.machine() as machine:
        keeper, sandbox = await alive(node, machine)
        live = machine.live[sandbox]
        node.driver.exit(sandbox)
        await live.gone.wait()
        [entry] = await keeper.query(LogsQuery(sandbox))
        assert (entry.level, entry.fields) == ("error", {"reason": "exited"})


async def test_a_silent_agent_does_not_hold_up_the_end(node: Node) -> None:
    async with node.machine() as machine:
        keeper, sandbox = await alive(node, machine)
        node.driver.status = b""
        async with asyncio.timeout(10):
            await kill.end(machine, sandbox, "killed")
        assert [entry.message for entry in await keeper.query(LogsQuery(sandbox))] == ["sandbox ended"]


async def test_what_is_kept_has_a_bound(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloche_server.node.logs.KEPT_BYTES", 3_000)
    async with node.machine() as machine:
        keeper, _ = await alive(node, machine, "a")
        for letter in "bcd":
            await create.create(machine, request_for(letter))
        answer(node, said(message="x" * 500))
        for letter in "abcd":
            await kill.end(machine, request_for(letter).sandbox_id, "killed")
        with pytest.raises(SandboxNotFound):
            await keeper.query(LogsQuery(request_for("a").sandbox_id))
        assert len(await keeper.query(LogsQuery(request_for("d").sandbox_id))) == 2


def test_an_entry_survives_the_link() -> None:
    assert LogEntry(1, "info", "a", "b").fields == {}
