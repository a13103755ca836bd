"""Event lines of running code, and the lines themselves."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_wire.errors import InvalidArgument, TooLarge
from cloche_wire.execution import (
    EndOfExecution,
    Event,
    Execution,
    ExecutionCount,
    ExecutionError,
    KeepAlive,
    OutputMessage,
    Result,
    event_line,
    parse_event,
)
from cloche_wire.ndjson import LineDecoder, encode_line

TEXT = st.text(st.characters(codec="utf-8"))
EVENTS = st.one_of(
    st.builds(ExecutionCount, st.integers(0, 2**31)),
    st.builds(OutputMessage, TEXT, TEXT, st.booleans()),
    st.builds(ExecutionError, TEXT, TEXT, TEXT),
    st.builds(
        Result,
        text=st.none() | TEXT,
        png=st.none() | TEXT,
        json=st.none() | st.dictionaries(TEXT, st.integers()),
        is_main_result=st.booleans(),
        extra=st.dictionaries(TEXT, TEXT),
    ),
    st.just(KeepAlive()),
    st.just(EndOfExecution()),
)


@given(EVENTS)
def test_every_event_survives_its_line(event: Event) -> None:
    line = event_line(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_event(line) == event


def test_absent_formats_are_left_out_and_extra_is_always_there() -> None:
    assert json.loads(event_line(Result(text="1", is_main_result=True))) == {
        "type": "result",
        "text": "1",
        "extra": {},
        "is_main_result": True,
    }


def test_an_unknown_event_is_skipped() -> None:
    assert parse_event(b'{"type":"confetti"}') is None


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{", b'{"type":"error","name":"x"}', b'{"type":"number_of_executions"}']
)
def test_a_malformed_event_is_an_invalid_argument(line: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse_event(line)


def test_an_execution_gathers_its_events() -> None:
    execution = Execution()
    for event in (
        ExecutionCount(3),
        OutputMessage("out\n"),
        OutputMessage("err\n", error=True),
        Result(text="shown"),
        Result(text="main", is_main_result=True),
        ExecutionError("A", "a", "t"),
        ExecutionError("B", "b", "t"),
        KeepAlive(),
        EndOfExecution(),
    ):
        execution.apply(event)
    assert (execution.execution_count, execution.text) == (3, "main")
    assert (execution.logs.stdout, execution.logs.stderr) == (["out\n"], ["err\n"])
    assert execution.error == ExecutionError("A", "a", "t")
    assert [result.text for result in execution.results] == ["shown", "main"]


def test_the_json_of_an_execution_holds_each_format() -> None:
    execution = Execution([Result(text="1", png="aGk=", extra={"x/y": "z"})])
    assert json.loads(execution.to_json())["results"] == [{"text": "1", "png": "aGk=", "x/y": "z"}]


@given(st.lists(st.binary().filter(lambda line: line.strip(b"\r") and b"\n" not in line)), st.data())
def test_lines_survive_any_cutting(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    decoder = LineDecoder(max_bytes=1000)
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += decoder.feed(stream[:size])
        stream = stream[size:]
    assert found == [line.rstrip(b"\r") for line in lines]
    assert decoder.close() is None


def test_the_last_line_may_lack_its_newline() -> None:
    decoder = LineDecoder(10)
    assert decoder.feed(b"a\r\n\nb") == [b"a"]
    assert decoder.close() == b"b"


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 6, b"x" * 5], [b"x" * 11 + b"\n"]])
def test_a_line_beyond_the_bound_is_too_large(pieces: list[bytes]) -> None:
    decoder = LineDecoder(10)
    for piece in pieces[:-1]:
        decoder.feed(piece)
    with pytest.raises(TooLarge):
        decoder.feed(pieces[-1])


def test_a_line_of_json_is_ascii() -> None:
    assert encode_line({"text": "ü\n"}) == b'{"text":"\\u00fc\\n"}\n'
