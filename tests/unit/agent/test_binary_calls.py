"""Calls in the binary codec, as Connect clients of other languages make them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from tests.unit.agent.running_agent import TOKEN, Agent

from cloche_wire import connect, proto_binary
from cloche_wire.messages import filesystem, process
from cloche_wire.messages.schema import Message, Rpc


def _stream(agent: Agent, rpc: Rpc, *messages: Message, **headers: str) -> tuple[list[Any], bytes]:
    """The messages of the answer and its last envelope."""
    body = b"".join(connect.encode_envelope(0, proto_binary.encode(message)) for message in messages)
    fields = {"Content-Type": connect.STREAM_PROTO, "X-Access-Token": TOKEN}
    with contextlib.closing(agent.connection()) as connection:
        connection.request("POST", rpc.path, body, fields | headers)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, connect.STREAM_PROTO)
        *found, last = connect.EnvelopeDecoder(1 << 20).feed(answer.read())
    assert last.is_end
    return [proto_binary.decode(rpc.response, envelope.data) for envelope in found], last.data


def test_unary_call_is_answered_in_its_codec(agent: Agent, tmp_path: Path) -> None:
    body = proto_binary.encode(filesystem.StatRequest(str(tmp_path)))
    answer = agent.request("POST", filesystem.STAT.path, body, Content_Type=connect.UNARY_PROTO)
    assert (answer.status, answer.headers["Content-Type"]) == (200, connect.UNARY_PROTO)
    entry = proto_binary.decode(filesystem.StatResponse, answer.body).entry
    assert entry is not None
    assert (entry.path, entry.type) == (str(tmp_path), filesystem.FileType.FILE_TYPE_DIRECTORY)


def test_errors_are_in_json_in_either_codec(agent: Agent, tmp_path: Path) -> None:
    body = proto_binary.encode(filesystem.StatRequest(str(tmp_path / "nope")))
    answer = agent.request("POST", filesystem.STAT.path, body, Content_Type=connect.UNARY_PROTO)
    assert (answer.status, answer.headers["Content-Type"]) == (404, connect.UNARY_JSON)
    assert answer.json["code"] == "not_found"
    found, end = _stream(agent, process.START, process.StartRequest())
    assert not found
    assert b"cmd is missing" in end


def test_process_runs_and_is_fed(agent: Agent) -> None:
    start = process.StartRequest(process.ProcessConfig("sh", ["-c", "echo out; echo err >&2; exit 3"]))
    found, end = _stream(agent, process.START, start)
    events = [message.event for message in found]
    assert events[0].start.pid > 0
    data = [event.data for event in events if event.data is not None]
    assert b"".join(piece.stdout or b"" for piece in data) == b"out\n"
    assert b"".join(piece.stderr or b"" for piece in data) == b"err\n"
    assert events[-1].end == process.EndEvent(3, True, "exit status 3", "exit status 3")
    assert end == b"{}"
    nobody = process.StreamInputStart(process.ProcessSelector(pid=1))
    found, end = _stream(agent, process.STREAM_INPUT, process.StreamInputRequest(start=nobody))
    assert not found
    assert b"not_found" in end


def test_wrong_header_of_a_stream_is_told_in_it(agent: Agent) -> None:
    _, end = _stream(agent, process.START, process.StartRequest(), **{"Connect-Timeout-Ms": "soon"})
    assert b"invalid_argument" in end


@pytest.mark.parametrize("kind", [connect.UNARY_PROTO, connect.STREAM_PROTO])
def test_bytes_that_are_no_message_are_refused(agent: Agent, kind: str) -> None:
    rpc = filesystem.STAT if kind == connect.UNARY_PROTO else process.START
    body = b"\xff" if kind == connect.UNARY_PROTO else connect.encode_envelope(0, b"\xff")
    answer = agent.request("POST", rpc.path, body, Content_Type=kind)
    assert b"invalid_argument" in answer.body
