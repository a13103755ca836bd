"""The message classes say what `specs/envd` says: neither can change alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.proto_text import ProtoField, ProtoFile, ProtoMessage, read_proto, resolve

from cloche_wire.messages import filesystem, process
from cloche_wire.messages.schema import Field, Kind, Message, Shape, table_of

if TYPE_CHECKING:
    from types import ModuleType

SPECS = Path(__file__).parents[3] / "specs" / "envd"
MODULES = [process, filesystem]


@pytest.fixture(params=MODULES, ids=["process", "filesystem"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture
def file(module: ModuleType) -> ProtoFile:
    return read_proto(SPECS / f"{module.__name__.rpartition('.')[2]}.proto")


def test_every_message_has_a_class_with_the_same_fields(module: ModuleType, file: ProtoFile) -> None:
    classes: dict[str, type[Message]] = module.PROTO_NAMES
    assert set(classes) == set(file.messages)
    for name, message in file.messages.items():
        fields = {field.name: field.spec for field in table_of(classes[name]).fields}
        specified = {field.name: _spec(module, file, message, field) for field in message.fields}
        assert fields == specified, name


def test_every_enum_has_the_same_numbers(module: ModuleType, file: ProtoFile) -> None:
    for name, values in file.enums.items():
        assert {member.name: member.value for member in getattr(module, name)} == values


def test_every_method_has_the_same_types_and_streams(module: ModuleType, file: ProtoFile) -> None:
    assert f"{file.package}.{file.service}" == module.SERVICE
    assert list(module.RPCS) == [method.name for method in file.methods]
    for method in file.methods:
        rpc = module.RPCS[method.name]
        assert rpc.path == f"/{module.SERVICE}/{method.name}"
        assert rpc.request is module.PROTO_NAMES[method.request]
        assert rpc.response is module.PROTO_NAMES[method.response]
        assert (rpc.client_stream, rpc.server_stream) == (method.client_stream, method.server_stream)


def _spec(module: ModuleType, file: ProtoFile, message: ProtoMessage, field: ProtoField) -> Field:
    shape = Shape.STRING_MAP if field.is_map else Shape.REPEATED if field.repeated else Shape.SINGLE
    name = resolve(file, message, field.type)
    enum = getattr(module, field.type) if field.type in file.enums else None
    cls = module.PROTO_NAMES.get(name)
    kind = Kind.ENUM if enum else Kind.MESSAGE if cls else Kind(field.type)
    return Field(field.number, kind, shape, field.optional, field.oneof, enum, cls)
