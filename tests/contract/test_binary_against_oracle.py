"""Our binary codec and protobuf-py's, built from the same specification, agree on every message."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_wire import proto_binary, proto_json
from cloche_wire.errors import InvalidArgument
from cloche_wire.messages import filesystem, process
from cloche_wire.messages.filesystem import EntryInfo, FileType
from cloche_wire.messages.process import EndEvent, ProcessConfig, ProcessInput, StartRequest
from tests.contract.messages import messages

pytest.importorskip("protobuf", reason="the dependency group `contract` is not installed")

from tests.contract.oracle import oracle_classes

if TYPE_CHECKING:
    from cloche_wire.messages.schema import Message

ALL = [("process", name, cls) for name, cls in process.PROTO_NAMES.items()] + [
    ("filesystem", name, cls) for name, cls in filesystem.PROTO_NAMES.items()
]


@given(st.sampled_from(ALL), st.data())
def test_both_codecs_write_and_read_the_same_bytes(
    kind: tuple[str, str, type[Message]], data: st.DataObject
) -> None:
    package, name, cls = kind
    message = data.draw(messages(cls))
    ours = proto_binary.encode(message)
    theirs = oracle_classes(package)[name].from_binary(ours)
    assert json.loads(theirs.to_json()) == proto_json.to_dict(message)
    assert proto_binary.decode(cls, theirs.to_binary()) == message
    assert proto_binary.decode(cls, ours) == message


@given(st.sampled_from(ALL), st.binary(max_size=60))
@pytest.mark.fuzz
def test_bytes_of_any_form_are_read_as_theirs_or_refused(
    kind: tuple[str, str, type[Message]], data: bytes
) -> None:
    package, name, cls = kind
    try:
        ours = proto_binary.decode(cls, data)
    except InvalidArgument:
        return
    with contextlib.suppress(Exception):  # theirs refuses more: its reasons are its own
        theirs = oracle_classes(package)[name].from_binary(data)
        assert json.loads(theirs.to_json()) == proto_json.to_dict(ours)


def test_what_a_parser_has_to_bear_is_borne() -> None:
    one, two = ProcessConfig("a", ["x"], {"k": "1"}), ProcessConfig("", ["y"], {"k": "2"}, "/")
    first, second = (proto_binary.encode(StartRequest(config)) for config in (one, two))
    merged = proto_binary.decode(StartRequest, first + second)
    assert merged.process == ProcessConfig("a", ["x", "y"], {"k": "2"}, "/")
    unknown = b"\x98\x06\x01" + b"\x9a\x06\x01x" + b"\x99\x06" + bytes(8) + b"\x9d\x06" + bytes(4)
    assert proto_binary.decode(StartRequest, unknown + first).process == one
    assert proto_binary.decode(EndEvent, b"\x08\x01").exit_code == -1
    assert proto_binary.decode(EntryInfo, b"\x10\x02").type is FileType.FILE_TYPE_DIRECTORY
    assert proto_binary.decode(EntryInfo, b"\x10\x63").type == 0x63
    last = proto_binary.decode(ProcessInput, b"\x0a\x01a\x12\x01b")
    assert (last.stdin, last.pty) == (None, b"b")


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05ab",
        b"\xff" * 11,
        b"\x0b",
        b"\x00\x00",
        b"\x08\x01",
        b"\x0a\x02\x0a\x01",
        b"\x0a\x03\x0a\x01\xff",
    ],
    ids=["no length", "short", "varint", "group", "field 0", "wire type", "inside", "utf-8"],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        proto_binary.decode(StartRequest, data)
