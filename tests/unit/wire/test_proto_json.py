"""The JSON codec: what the contract test with the oracle does not already show."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_wire import proto_json
from cloche_wire.errors import InvalidArgument
from cloche_wire.messages.filesystem import EntryInfo, ListDirResponse
from cloche_wire.messages.process import (
    DataEvent,
    KeepAlive,
    ProcessEvent,
    ProcessSelector,
    StartEvent,
    StartRequest,
)
from cloche_wire.messages.timestamp import Timestamp

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"process":{"args":["a",5]}}', "process.args[1]"),
        ('{"process":{"envs":{"A":null}}}', "process.envs['A']"),
        ('{"pty":{"size":{"rows":"many"}}}', "pty.size.rows"),
        ('{"process":[]}', "process"),
    ],
)
def test_bad_input_names_the_field_path(text: str, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        proto_json.decode(StartRequest, text.encode())
    assert caught.value.message.endswith(f": {path}")


def test_a_field_in_both_spellings_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"field given twice: end\.exitCode"):
        proto_json.from_dict(ProcessEvent, {"end": {"exitCode": 1, "exit_code": 2}})


def test_two_members_of_a_oneof_are_refused_when_read() -> None:
    with pytest.raises(InvalidArgument, match="second member of oneof event: keepalive"):
        proto_json.from_dict(ProcessEvent, {"start": {}, "keepalive": {}})


def test_two_members_of_a_oneof_are_refused_when_written() -> None:
    with pytest.raises(InvalidArgument, match="second member of oneof event: keepalive"):
        proto_json.encode(ProcessEvent(start=StartEvent(1), keepalive=KeepAlive()))


def test_a_member_of_a_oneof_is_written_even_when_it_is_zero() -> None:
    assert proto_json.to_dict(ProcessSelector(pid=0)) == {"pid": 0}
    assert proto_json.to_dict(DataEvent(stdout=b"")) == {"stdout": ""}


@pytest.mark.parametrize("data", [b"", b"NaN", b'{"process":', b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_what_is_not_json_is_an_invalid_argument(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        proto_json.decode(StartRequest, data)


@given(JSON)
def test_any_json_is_read_or_refused_and_nothing_else(value: object) -> None:
    try:
        proto_json.from_dict(StartRequest, {"process": value, "pty": value, "stdin": value, "tag": value})
    except InvalidArgument:
        return


def test_a_file_name_that_is_not_unicode_does_not_spoil_the_listing() -> None:
    name = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
    written = json.loads(proto_json.encode(ListDirResponse([EntryInfo(name=name)])))
    assert written == {"entries": [{"name": "caf\ufffd.txt"}]}


@given(st.integers(-(2**70), 2**70))
def test_file_times_are_moved_into_the_range_of_the_format(time_ns: int) -> None:
    moment = Timestamp.from_ns(time_ns)
    assert Timestamp.from_rfc3339(moment.to_rfc3339()) == moment


@given(st.integers(0, 2**62))
def test_file_times_keep_their_nanoseconds(time_ns: int) -> None:
    moment = Timestamp.from_rfc3339(Timestamp.from_ns(time_ns).to_rfc3339())
    assert moment.seconds * 10**9 + moment.nanos == time_ns


@given(st.datetimes(timezones=st.just(UTC)))
def test_datetimes_survive(moment: datetime) -> None:
    try:
        stamp = Timestamp.from_datetime(moment)
    except (ValueError, OverflowError):
        return
    assert stamp.to_datetime() == moment


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:60Z",
        "10000-01-01T00:00:00Z",
        "٢٠٢٤-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
    ],
)
def test_bad_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Timestamp.from_rfc3339(text)
