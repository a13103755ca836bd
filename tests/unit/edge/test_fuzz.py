"""Random heads and bodies at the edge: every one is answered or cut, none is an accident, nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.edge.world import World

from cloche_server.edge.heads import AnswerError, parse_answer, parse_request
from cloche_server.edge.refusal import Refusal
from cloche_server.edge.targets import Kind, read_target, refuse_control_path

pytestmark = pytest.mark.fuzz

DOMAIN = "cloche.localhost:3000"
ID = "iabcdefghijklmnopqrst"
ANSWER_S = 20

LATIN = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
LABEL = st.one_of(
    LATIN,
    st.sampled_from(
        [f"8080-{ID}", f"0-{ID}", f"65536-{ID}", f"49983-{ID}-client", "8080-", "-", "xn--a-1", "8080-I"]
    ),
    st.from_regex(r"[0-9]{0,6}-[a-zA-Z0-9-]{0,45}", fullmatch=True),
)
HOST = st.tuples(
    LABEL,
    st.sampled_from(["", ".", ".cloche.localhost", ".example", "..example", "@x", "/x"]),
    st.sampled_from(["", ":80", ":3000", ":", ":99999", ":-1"]),
).map("".join)
TARGET = st.one_of(
    LATIN.map(lambda text: "/" + text),
    st.sampled_from(["*", "/health", "/files?signature=v1_x&path=a&path=b", "//init", "/%69nit"]),
    st.sampled_from(["/x/../freeze", "http://a.example/x", "http://[::1", "/execute", "/" + "a" * 9000]),
)


def _field(names: list[str], *values: str) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.sampled_from(names), st.sampled_from(values) if values else LATIN)


FIELD = st.one_of(
    _field(["E2b-Sandbox-Id"], ID, ID.upper(), "", "x" * 41),
    _field(["E2b-Sandbox-Port"], "49983", "8080", "0", "-1", "x", "٣"),
    _field(["Content-Length"], "0", "3", "+3", "3, 3", "-1", "9" * 30),
    _field(["Transfer-Encoding"], "chunked", "gzip", "chunked, chunked"),
    _field(["Connection", "Upgrade", "TE", "Expect"], "close", "keep-alive, X-Access-Token"),
    _field(["Connection", "Upgrade", "TE", "Expect"], "websocket", "upgrade", "100-continue"),
    _field(["X-Access-Token", "Origin", "Host", "X-Forwarded-For", "Bad Name", "E2b-Sandbox-Id", ""]),
)
HEADS = st.builds(
    lambda method, target, host, fields: "\r\n".join(
        [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in fields)]
    ).encode("utf-8", "replace"),
    st.sampled_from(["GET", "POST", "OPTIONS", "HEAD", "CONNECT", "get", "", "P\0T"]),
    TARGET,
    HOST,
    st.lists(FIELD, max_size=6),
)


@given(st.one_of(HEADS, st.binary(max_size=200)))
def test_head_of_any_form_has_one_target_or_is_refused(head: bytes) -> None:
    try:
        request = parse_request(head)
        found = read_target(request, DOMAIN)
        refuse_control_path(request)
    except Refusal:
        return
    if found.kind is Kind.SANDBOX:
        assert 0 < found.port < 65536
        assert found.sandbox_id.isascii()
        assert found.sandbox_id.isalnum()


@given(st.binary(max_size=200))
def test_answer_head_of_any_form_is_read_or_told_as_broken(head: bytes) -> None:
    for form in (head, b"HTTP/1.1 200 OK\r\n" + head):
        with contextlib.suppress(AnswerError):
            parse_answer(form)


CHUNK = st.sampled_from(
    [b"3\r\nabc\r\n", b"0\r\n\r\n", b"-1\r\n", b"f" * 18 + b"\r\n", b"3;x=y\r\nabc\r\n", b"3\r\nabcd\r\n"]
)
BODY = st.one_of(st.binary(max_size=30), st.lists(CHUNK, max_size=4).map(b"".join))


@given(st.lists(st.tuples(HEADS, BODY), min_size=10, max_size=25))
@settings(max_examples=settings.default.max_examples // 4)
def test_requests_of_any_form_get_an_answer_that_was_meant(requests: list[tuple[bytes, bytes]]) -> None:
    """The services echo, so that a 500 could only be the edge's own; 502 is for ports that are not open."""
    folder = Path(tempfile.mkdtemp(prefix="edge"))
    before = _open_files()
    try:
        answers = asyncio.run(_ask_all(folder, [head + b"\r\n\r\n" + body for head, body in requests]))
    finally:
        shutil.rmtree(folder)
    assert _open_files() == before
    statuses = {int(answer.split(b" ", 2)[1]) for answer in answers if answer.startswith(b"HTTP/1.1 ")}
    assert all(answer.startswith(b"HTTP/1.1 ") for answer in answers if answer), answers
    assert statuses <= {200, 204, 400, 401, 403, 404, 405, 413, 414, 417, 421, 426, 431, 501, 502, 505}, (
        statuses
    )


async def _ask_all(folder: Path, requests: list[bytes]) -> list[bytes]:
    world = World(folder)
    async with world.running(), asyncio.timeout(ANSWER_S):
        await world.add_sandbox(ID)
        return [await _ask(world, request) for request in requests]


async def _ask(world: World, request: bytes) -> bytes:
    """Send, say that no more comes, and read to the end."""
    reader, writer = await asyncio.open_connection(*world.address)
    try:
        writer.write(request)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.write_eof()
            return await reader.read()
        return b""
    finally:
        writer.close()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
