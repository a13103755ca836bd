"""Our extension of Connect: what was printed before, and how much of it is kept."""

from __future__ import annotations

import base64
import contextlib
import tracemalloc
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.unit.agent.running_agent import Agent, Result, StreamError, collect, running_agent

from cloche_agent.process.history import History, share

HEADER = "Cloche-Replay-From"


@pytest.fixture
def printer(agent: Agent) -> Generator[int]:
    """A process that printed `one` to stdout and `two` to stderr, nobody listens to, and waits for input."""
    script = "printf one; printf two >&2; read line; printf $line"
    stream = agent.start("sh", "-c", script, stdin=True)
    events = iter(stream)
    pid = next(events)["event"]["start"]["pid"]
    seen = 0
    while seen < 6:
        data = next(events)["event"]["data"]
        seen += sum(len(base64.b64decode(piece)) for piece in data.values())
    stream.close()
    yield pid
    agent.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})


def _answer_line(agent: Agent, pid: int) -> None:
    line = {"process": {"pid": pid}, "input": {"stdin": base64.b64encode(b"three\n").decode()}}
    assert agent.call("process.Process/SendInput", line).status == 200


def _connect(agent: Agent, pid: int, offset: str | None) -> tuple[str | None, Result]:
    """Connect, let the process go on to its end, and read everything."""
    headers = {} if offset is None else {HEADER: offset}
    stream = agent.stream("process.Process/Connect", {"process": {"pid": pid}}, **headers)
    _answer_line(agent, pid)
    return stream.header(HEADER), collect(stream)


@pytest.mark.parametrize(
    ("asked", "begins_at", "output"),
    [
        (None, "6", ["three"]),
        ("0", "0", ["onetwothree", "onethreetwo", "twoonethree"]),
        ("6", "6", ["three"]),
        ("999", "6", ["three"]),
    ],
)
def test_connect_begins_where_it_is_asked_to_and_else_now(
    agent: Agent, printer: int, asked: str | None, begins_at: str, output: list[str]
) -> None:
    header, result = _connect(agent, printer, asked)
    assert header == begins_at
    assert (result.stdout + result.stderr).decode() in output
    assert result.end["exited"]


def test_kinds_of_output_stay_apart(agent: Agent, printer: int) -> None:
    _, result = _connect(agent, printer, "0")
    assert (result.stdout, result.stderr) == (b"onethree", b"two")


def test_process_that_ended_a_moment_ago_is_replayed_too(agent: Agent) -> None:
    first = agent.run("sh", "-c", "printf 0123456789")
    again = collect(agent.stream("process.Process/Connect", {"process": {"pid": first.pid}}, **{HEADER: "4"}))
    assert (again.stdout, again.end) == (b"456789", first.end)
    plain = collect(agent.stream("process.Process/Connect", {"process": {"pid": first.pid}}))
    assert (plain.stdout, plain.end) == (b"", first.end)


def test_only_the_last_output_is_kept_and_the_answer_says_from_where(tmp_path: Path) -> None:
    """Of one process alone in its sandbox; many share, as the last test here claims."""
    with running_agent(tmp_path) as agent:
        first = agent.run("sh", "-c", "head -c 3000000 /dev/zero; printf end")
        stream = agent.stream("process.Process/Connect", {"process": {"pid": first.pid}}, **{HEADER: "0"})
        begin = int(stream.header(HEADER) or "")
        again = collect(stream)
    assert 3_000_003 - 256 * 1024 <= begin < 3_000_003 - 128 * 1024
    assert len(again.stdout) == 3_000_003 - begin
    assert again.stdout.endswith(b"\0end")


@pytest.mark.parametrize("offset", ["-1", "x", "", "1.0", "9" * 40])
def test_offset_that_is_none_is_refused(agent: Agent, printer: int, offset: str) -> None:
    with (
        contextlib.closing(
            agent.stream("process.Process/Connect", {"process": {"pid": printer}}, **{HEADER: offset})
        ) as stream,
        pytest.raises(StreamError, match="invalid_argument"),
    ):
        list(stream)


def test_of_a_piece_larger_than_the_share_its_end_is_kept() -> None:
    history = History()
    history.limit(20_000)
    for letter in b"abc":
        history.add(bytes, bytes([letter]) * 90_000)
    assert (history.begin, history.end) == (260_256, 270_000)
    assert b"".join(history.frames(0)) == b"c" * 9_744


def test_output_byte_by_byte_costs_no_more_than_its_limit() -> None:
    kinds = (bytes, lambda piece: b"!" + piece)
    tracemalloc.start()
    try:
        history = History()
        for at in range(200_000):
            history.add(kinds[at // 3 % 2], b"x")
        assert tracemalloc.get_traced_memory()[0] < 512 * 1024
    finally:
        tracemalloc.stop()
    assert history.end == 200_000
    assert sum(len(frame.strip(b"!")) for frame in history.frames(0)) == history.end - history.begin > 1000


def test_many_processes_share_one_sum() -> None:
    histories = [History() for _ in range(64)]
    for history in histories:
        for _ in range(32):
            history.add(bytes, bytes(32 * 1024))
    share(histories)
    assert sum(len(frame) for history in histories for frame in history.frames(0)) <= 4 << 20
    share([])
