"""Whatever comes over the wire is read or refused in the words of the error tree, never by an accident."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_wire import connect, hostname, proto_json, signature
from cloche_wire.errors import ClocheError, InvalidArgument, Unauthenticated
from cloche_wire.messages import filesystem, process
from cloche_wire.messages.schema import Message, table_of

pytestmark = pytest.mark.fuzz

REQUESTS = [rpc.request for rpc in (*process.RPCS.values(), *filesystem.RPCS.values())]
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**31, 2**32, 2**63, -1, 1e400]))
TEXTS = st.one_of(st.text(), st.sampled_from(["\0", "\ud800", "-1", "NaN", "AA==", "2024-02-30T00:00:00Z"]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
)


def _names(cls: type[Message]) -> set[str]:
    """Names of the fields of a message and of all messages in it."""
    found: set[str] = set()
    for field in table_of(cls).fields:
        found |= {field.name, field.json_name}
        if field.spec.message is not None:
            found |= _names(field.spec.message)
    return found


def _likely(cls: type[Message]) -> st.SearchStrategy[Any]:
    """JSON whose keys are the message's own, so that the values are looked at."""
    keys = st.sampled_from(sorted(_names(cls)) or ["x"])
    return st.recursive(
        st.one_of(JSON, st.none()),
        lambda inner: st.one_of(st.dictionaries(keys, inner, max_size=4), st.lists(inner, max_size=3)),
        max_leaves=10,
    )


@given(st.sampled_from(REQUESTS), st.data())
def test_json_of_any_shape_is_read_or_refused(cls: type[Message], data: st.DataObject) -> None:
    text = json.dumps(data.draw(_likely(cls))).encode()
    try:
        message = proto_json.decode(cls, text)
    except InvalidArgument as error:
        error.message.encode()  # fit to be sent
        return
    assert proto_json.decode(cls, proto_json.encode(message)) == message


@given(st.binary(max_size=200), st.sampled_from(REQUESTS))
def test_bytes_that_are_no_json_are_refused(data: bytes, cls: type[Message]) -> None:
    with contextlib.suppress(InvalidArgument):
        proto_json.decode(cls, data)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=6), st.data())
def test_envelopes_do_not_depend_on_how_they_were_cut(
    envelopes: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    body = b"".join(connect.encode_envelope(flags, payload) for flags, payload in envelopes)
    body += data.draw(st.binary(max_size=8))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert _decoded([body]) == _decoded(pieces)


def _decoded(pieces: list[bytes]) -> list[connect.Envelope] | type[ClocheError]:
    decoder = connect.EnvelopeDecoder(50)
    found: list[connect.Envelope] = []
    try:
        for piece in pieces:
            found += decoder.feed(piece)
        decoder.close()
    except ClocheError as error:
        return type(error)
    return found


@given(st.binary(max_size=300))
def test_ends_of_streams_and_errors_of_any_form_are_read(body: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        connect.read_end_stream(body)
    assert isinstance(connect.read_error(400, body), ClocheError)


@given(JSON, st.integers(100, 599))
def test_error_bodies_of_any_shape_become_errors(body: object, status: int) -> None:
    text = json.dumps(body).encode()
    assert isinstance(connect.read_error(status, text), ClocheError)
    with contextlib.suppress(InvalidArgument):
        connect.read_end_stream(text)


@given(st.one_of(st.text(max_size=20), st.integers().map(str)))
def test_time_outs_are_whole_milliseconds_or_refused(header: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert 0 <= (connect.parse_timeout_ms(header) or 0) < 10**10


PARAMETERS = st.sampled_from(["path", "username", "signature", "signature_expiration", "x"])
VALUES = st.one_of(
    st.text(st.characters(codec=None), max_size=12), st.sampled_from(["user", "v1_", "1", "-1", "9" * 20])
)


@given(st.lists(st.tuples(PARAMETERS, VALUES), max_size=6))
def test_query_without_the_right_signature_never_passes(pairs: list[tuple[str, str]]) -> None:
    try:
        query = signature.read_query(pairs)
        signature.verify(query, "read", "token", 0)
    except (InvalidArgument, Unauthenticated):
        return
    raise AssertionError("passed")


@given(
    path=st.text(max_size=10),
    user=st.sampled_from(["", "user", "root"]),
    expires_at=st.one_of(st.none(), st.integers(0, 10**15)),
    operation=st.sampled_from(["read", "write"]),
    change=st.sampled_from(
        ["nothing", "path", "username", "signature_expiration", "operation", "token", "twice"]
    ),
    data=st.data(),
)
def test_signed_url_opens_what_it_was_signed_for_and_nothing_else(
    path: str,
    user: str,
    expires_at: int | None,
    operation: signature.Operation,
    change: str,
    data: st.DataObject,
) -> None:
    token = "token"
    signed = signature.sign(path, operation, user, token, expires_at)
    query = {"path": path, "username": user, "signature": signed}
    if expires_at is not None:
        query["signature_expiration"] = str(expires_at)
    more: list[tuple[str, str]] = []
    if change in ("path", "username", "signature_expiration"):
        new = data.draw(VALUES.filter(lambda value: value != query.get(change, "")))
        query[change] = new
    elif change == "operation":
        operation = "read" if operation == "write" else "write"
    elif change == "token":
        token = "tokeN"
    elif change == "twice":
        more = [data.draw(st.sampled_from(sorted(query.items())))]
    try:
        signature.verify(signature.read_query([*query.items(), *more]), operation, token, 0)
    except (InvalidArgument, Unauthenticated):
        assert change != "nothing"
        return
    assert change == "nothing"


LABELS = st.one_of(st.text(max_size=12), st.from_regex(r"[0-9]{0,6}-[a-z0-9A-Z-]{0,45}", fullmatch=True))


@given(st.lists(LABELS, max_size=4).map(".".join), st.sampled_from(["", ":80", ":", ":x", ":123456"]))
def test_hosts_name_a_port_of_a_sandbox_or_nothing(name: str, port: str) -> None:
    found = hostname.parse_host(name + port)
    if found is None:
        return
    assert 0 < found.port < 65536
    assert hostname.parse_sandbox_id(found.sandbox_id) == found.sandbox_id
    assert hostname.parse_host(hostname.format_host(found.port, found.sandbox_id, "a.b")) == found


@given(st.text(max_size=50))
def test_ids_and_ports_are_what_their_alphabet_allows(text: str) -> None:
    found = hostname.parse_sandbox_id(text)
    assert found is None or (found.isascii() and found.isalnum() and found == found.lower())
    port = hostname.parse_port(text)
    assert port is None or str(port) == text
