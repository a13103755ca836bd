"""Random requests to the agent: an answer below 500, soon, and no trace of them.

Only what can touch no file: the agent of these tests runs on this machine's own tree. The methods on files
and processes are fuzzed inside a sandbox, in tests/integration/server/test_fuzz.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.agent.running_agent import TOKEN, Agent

from cloche_agent.filesystem import ranges
from cloche_agent.filesystem.multipart import MultipartParser, PartBegin, PartData, PartEnd, PartEvent
from cloche_agent.http import Headers
from cloche_wire.errors import InvalidArgument

pytestmark = pytest.mark.fuzz
ANSWER_S = 10
GLANCE_S = 0.05
"""For the answer to a complete request to come before we hang up; on a busy machine it may be too short."""
BOUNDARY = "b1"
PIECES = st.sampled_from(
    [
        *(b"--b1", b"--b1--", b"\r\n", b"\r\n--b1\r\n", b"\r\n--b1--\r\n", b"\r\n\r\n"),
        *(b"--", b"\r", b"\n", b"b1", b" ", b"\xff", b"x" * 40, b'filename="\\"'),
        b'Content-Disposition: form-data; name="file"; filename="a"',
        b"Content-Disposition: form-data; name=file; filename*=utf-8''%C3%A9",
        b"Content-Disposition: x",
    ]
)


@given(st.lists(st.one_of(PIECES, st.binary(max_size=10)), max_size=25).map(b"".join), st.data())
def test_form_is_the_same_however_it_was_cut(body: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert _parsed(pieces) == _parsed([body])


def _parsed(pieces: list[bytes]) -> list[tuple[str, str | None, bytes]] | None:
    """The parts as (name, file name, content); None for a body that is refused."""
    parser = MultipartParser(f"multipart/form-data; boundary={BOUNDARY}")
    events: list[PartEvent] = []
    try:
        for piece in pieces:
            events += parser.feed(piece)
        parser.close()
    except InvalidArgument:
        return None
    parts: list[tuple[str, str | None, bytes]] = []
    is_open = False
    for event in events:
        match event:
            case PartBegin(name, filename):
                assert not is_open
                parts.append((name, filename, b""))
                is_open = True
            case PartData(content):
                assert is_open
                name, filename, before = parts[-1]
                parts[-1] = (name, filename, before + content)
            case PartEnd():
                assert is_open
                is_open = False
    assert not is_open
    return parts


@given(st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=50)), min_size=1, max_size=4))
def test_form_gives_back_what_was_put_in(parts: list[tuple[str, bytes]]) -> None:
    names = ["".join(c for c in name if c.isprintable() and c not in '"\\\\') for name, _ in parts]
    body = b"".join(
        b'--b1\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n'
        % (name.encode(), content)
        for name, (_, content) in zip(names, parts, strict=True)
        if b"\r\n--b1" not in b"\r\n" + content
    )
    found = _parsed([body + b"--b1--\r\n"])
    expected = [(name, content) for name, (_, content) in zip(names, parts, strict=True)]
    assert found is not None
    assert [(name, content) for _, name, content in found] == [
        (name, content) for name, content in expected if b"\r\n--b1" not in b"\r\n" + content
    ]


DATES = ["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Feb 2020 25:61:61 GMT", "x"]
FIELD = st.one_of(
    st.text(max_size=30),
    st.sampled_from([*DATES, '"x"', "*", 'W/"x", "y"', "gzip;q=0.5, *;q=0", "identity;q=0"]),
    st.from_regex(r"bytes=([0-9]{0,20}-[0-9]{0,20}, ?){0,4}[0-9]{0,3}-[0-9]{0,3}", fullmatch=True),
)
CONDITIONS = ["range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since",
              "accept-encoding"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(CONDITIONS), FIELD), st.integers(0, 1000))
def test_conditions_and_ranges_of_any_form_are_decided(fields: dict[str, str], size: int) -> None:
    values = (0o100644, 1, 1, 1, 0, 0, size, 0, 1, 0)
    found = os.stat_result(values, {"st_mtime": 1.0, "st_mtime_ns": 10**9})
    headers = Headers(fields.items())
    ranges.is_unchanged(headers, found)
    ranges.has_failed_precondition(headers, found)
    with contextlib.suppress(ranges.NotAcceptable):
        ranges.wants_gzip(headers)
    with contextlib.suppress(ranges.RangeNotSatisfiable):
        spans = ranges.requested_spans(headers, found)
        assert all(0 <= start < end <= size for start, end in spans)
        assert sum(end - start for start, end in spans) <= size


METHODS = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "BREW"])
TARGETS = st.one_of(
    st.sampled_from(["/health", "/metrics", "/envs", "/files", "/files?path=%00&path=x", "/init", "/%ff", "*",
                     "/files/compose", "/process.Process/List", "/process.Process/Nope", "/x?" + "a&" * 300]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(lambda text: "/" + text),
)  # fmt: skip
VALUE = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
    st.sampled_from(
        [TOKEN, "application/json", "application/connect+json", "gzip", "chunked", "100-continue"]
    ),
    st.sampled_from(["5", "-5", "99999999999", "Basic !!", "Basic Og==", "close", "x" * 1000]),
)
NAME = st.sampled_from(
    [
        *("X-Access-Token", "Content-Type", "Content-Length", "Transfer-Encoding", "Authorization"),
        *("Connect-Timeout-Ms", "Expect", "Connection", "Content-Encoding", "Origin"),
        *("Access-Control-Request-Method", "Access-Control-Request-Headers"),
    ]
)


@given(METHODS, TARGETS, st.lists(st.tuples(NAME, VALUE), max_size=6), st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_head_of_any_form_is_answered_below_500_and_soon(
    agent: Agent, method: str, target: str, fields: list[tuple[str, str]], body: bytes
) -> None:
    # Without the token nothing is written, with it nothing but what is read: see the head of this file.
    if target.startswith(("/files", "/process", "/init")):
        fields = [(name, value) for name, value in fields if value != TOKEN]
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: x",
        *(f"{name}: {value}" for name, value in fields),
        "",
        "",
    ]
    _answered(agent, "\r\n".join(lines).encode("latin-1") + body)


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_are_no_request_are_answered_below_500_and_soon(agent: Agent, data: bytes) -> None:
    _answered(agent, data)


def _answered(agent: Agent, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(agent.socket_path))
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.settimeout(GLANCE_S)
            with contextlib.suppress(TimeoutError):
                answer += connection.recv(65536)
            # Nothing more comes of a request that is not complete; and whoever hangs up must be let go.
            connection.settimeout(ANSWER_S)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
    if answer:
        # 501 is for a transfer encoding that nobody has: RFC 9112, section 6.1.
        assert int(answer.split(b" ")[1]) in (*range(100, 500), 501), answer


def test_fuzzing_left_no_descriptor_and_the_agent_well(agent: Agent) -> None:
    assert agent.request("GET", "/health").status == 204
    held = [entry.readlink() for entry in Path(f"/proc/{agent.pid}/fd").iterdir() if entry.exists()]
    assert len([target for target in held if str(target).startswith("socket:")]) < 10
