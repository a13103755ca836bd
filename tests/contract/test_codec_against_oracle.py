"""Our JSON codec and protobuf-py's, built from the same specification, agree on every message."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloche_wire import connect, proto_json
from cloche_wire.errors import InvalidArgument, Unavailable
from cloche_wire.messages import filesystem, process
from cloche_wire.messages.filesystem import EntryInfo, FilesystemEvent
from cloche_wire.messages.process import ProcessEvent, SendSignalRequest, StartRequest
from tests.contract.messages import messages

pytest.importorskip("protobuf", reason="the dependency group `contract` is not installed")

from typing import TYPE_CHECKING

from tests.contract.oracle import oracle_classes

if TYPE_CHECKING:
    from cloche_wire.messages.schema import Message

ALL = [("process", name, cls) for name, cls in process.PROTO_NAMES.items()] + [
    ("filesystem", name, cls) for name, cls in filesystem.PROTO_NAMES.items()
]


@pytest.mark.parametrize(
    ("package", "name", "cls"), ALL, ids=[f"{package}.{name}" for package, name, _ in ALL]
)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_codecs_write_and_read_the_same_json(
    package: str, name: str, cls: type[Message], data: st.DataObject
) -> None:
    message = data.draw(messages(cls))
    ours = proto_json.encode(message)
    theirs = oracle_classes(package)[name].from_json(ours.decode())
    assert json.loads(theirs.to_json()) == json.loads(ours)
    assert proto_json.decode(cls, theirs.to_json().encode()) == message


ACCEPTED = [
    (StartRequest, "StartRequest", '{"process":{"cmd":"x","args":null},"stdin":false,"unknown":[1,{"a":2}]}'),
    (ProcessEvent, "ProcessEvent", '{"end":{"exit_code":"-1","exited":false}}'),
    (ProcessEvent, "ProcessEvent", '{"end":{"exitCode":1e2}}'),
    (ProcessEvent, "ProcessEvent", '{"end":{"exitCode":"3.0"}}'),
    (ProcessEvent, "ProcessEvent", '{"data":{"stdout":"-_8"}}'),
    (ProcessEvent, "ProcessEvent", '{"data":{"stdout":"+/8="}}'),
    (ProcessEvent, "ProcessEvent", '{"start":null,"keepalive":{}}'),
    (SendSignalRequest, "SendSignalRequest", '{"signal":9}'),
    (SendSignalRequest, "SendSignalRequest", '{"signal":77}'),
    (EntryInfo, "EntryInfo", '{"modifiedTime":"2024-02-29T23:59:59.5+02:30","size":"9223372036854775807"}'),
    (EntryInfo, "EntryInfo", '{"type":"FILE_TYPE_SYMLINK","symlinkTarget":"","isSymlink":true}'),
]


@pytest.mark.parametrize(("cls", "name", "text"), ACCEPTED)
def test_both_codecs_accept(cls: type[Message], name: str, text: str) -> None:
    theirs = _classes(cls)[name].from_json(text, ignore_unknown_fields="unknown" in text)
    assert proto_json.to_dict(proto_json.decode(cls, text.encode())) == json.loads(theirs.to_json())


REFUSED = [
    (StartRequest, "StartRequest", "[]"),
    (StartRequest, "StartRequest", "{"),
    (StartRequest, "StartRequest", '{"stdin":"yes"}'),
    (StartRequest, "StartRequest", '{"stdin":1}'),
    (StartRequest, "StartRequest", '{"process":{"cmd":5}}'),
    (StartRequest, "StartRequest", '{"process":{"args":"x"}}'),
    (StartRequest, "StartRequest", '{"process":{"args":[null]}}'),
    (StartRequest, "StartRequest", '{"process":{"envs":{"a":1}}}'),
    (StartRequest, "StartRequest", '{"process":{"envs":[]}}'),
    (StartRequest, "StartRequest", '{"pty":{"size":{"cols":-1}}}'),
    (StartRequest, "StartRequest", '{"pty":{"size":{"cols":4294967296}}}'),
    (StartRequest, "StartRequest", '{"pty":{"size":{"cols":1.5}}}'),
    (StartRequest, "StartRequest", '{"pty":{"size":{"cols":true}}}'),
    (StartRequest, "StartRequest", '{"pty":{"size":{"cols":" 1"}}}'),
    (StartRequest, "StartRequest", '{"pty":{"size":{"cols":"0x1"}}}'),
    (ProcessEvent, "ProcessEvent", '{"data":{"stdout":"a"}}'),
    (ProcessEvent, "ProcessEvent", '{"data":{"stdout":"§§§§"}}'),
    (SendSignalRequest, "SendSignalRequest", '{"signal":"SIGKILL"}'),
    (EntryInfo, "EntryInfo", '{"modifiedTime":"2024-02-30T00:00:00Z"}'),
    (EntryInfo, "EntryInfo", '{"modifiedTime":"2024-02-28 00:00:00Z"}'),
    (EntryInfo, "EntryInfo", '{"modifiedTime":"2024-02-28T00:00:00"}'),
    (EntryInfo, "EntryInfo", '{"size":"9223372036854775808"}'),
    (EntryInfo, "EntryInfo", '{"name":"\\ud800"}'),
    (FilesystemEvent, "FilesystemEvent", '{"entry":[]}'),
]


@pytest.mark.parametrize(("cls", "name", "text"), REFUSED)
def test_both_codecs_refuse(cls: type[Message], name: str, text: str) -> None:
    with pytest.raises(InvalidArgument):
        proto_json.decode(cls, text.encode())
    with pytest.raises((ValueError, TypeError, OverflowError)):
        _classes(cls)[name].from_json(text)


def test_connect_codes_and_statuses_are_those_of_connectrpc() -> None:
    protocol = pytest.importorskip("connectrpc._protocol")
    theirs = {
        code.value: protocol.ConnectWireError(code, "", []).to_http_status().code for code in protocol.Code
    }
    assert theirs == connect.HTTP_STATUS


def test_connectrpc_reads_our_error_body() -> None:
    protocol = pytest.importorskip("connectrpc._protocol")
    body = json.loads(connect.error_body(Unavailable("the sandbox was not found")))
    wire_error = protocol.ConnectWireError.from_dict(body, 503, protocol.Code.UNKNOWN)
    assert (wire_error.code.value, wire_error.message) == ("unavailable", "the sandbox was not found")


def _classes(cls: type[Message]) -> dict[str, type]:
    return oracle_classes("process" if cls.__module__.endswith("process") else "filesystem")
