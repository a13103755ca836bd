"""How a message class says what each of its fields is in the protocol: the table that drives the codec.

A message is a frozen dataclass. Each field carries a `Field` in its metadata: number and kind, as in
`specs/envd`. Presence follows proto3: a plain scalar is absent when it has its zero value; an `optional`
scalar, a message and a member of a oneof are absent when they are None.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, ClassVar, Protocol, TypeAlias

_METADATA_KEY = "cloche_wire.field"


class Message(Protocol):
    """Any message class: a dataclass whose fields were declared with the functions below."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


class Kind(Enum):
    """The proto3 types that the two services use."""

    STRING = "string"
    BYTES = "bytes"
    BOOL = "bool"
    INT32 = "int32"
    SINT32 = "sint32"
    UINT32 = "uint32"
    INT64 = "int64"
    ENUM = "enum"
    MESSAGE = "message"
    TIMESTAMP = "google.protobuf.Timestamp"


class Shape(Enum):
    """How many values a field holds."""

    SINGLE = "single"
    REPEATED = "repeated"
    STRING_MAP = "map<string, string>"


@dataclass(frozen=True, slots=True)
class Field:
    """What the protocol says about one field."""

    number: int
    kind: Kind
    shape: Shape = Shape.SINGLE
    optional: bool = False
    oneof: str | None = None
    enum: type[IntEnum] | None = None
    message: type[Message] | None = None


@dataclass(frozen=True, slots=True)
class NamedField:
    """A field together with its names: the attribute (= the name in the .proto text) and the name in JSON."""

    name: str
    json_name: str
    spec: Field


@dataclass(frozen=True, slots=True)
class Table:
    """All fields of one message class, in order of their numbers."""

    fields: tuple[NamedField, ...]
    by_key: dict[str, NamedField]
    oneofs: frozenset[str]


Metadata: TypeAlias = "dict[str, Field]"


def scalar(number: int, kind: Kind, *, optional: bool = False, oneof: str | None = None) -> Metadata:
    """Metadata of one scalar field."""
    return {_METADATA_KEY: Field(number, kind, optional=optional, oneof=oneof)}


def repeated_string(number: int) -> Metadata:
    """Metadata of a list of strings."""
    return {_METADATA_KEY: Field(number, Kind.STRING, shape=Shape.REPEATED)}


def string_map(number: int) -> Metadata:
    """Metadata of a map from strings to strings."""
    return {_METADATA_KEY: Field(number, Kind.STRING, shape=Shape.STRING_MAP)}


def enum_of(number: int, enum: type[IntEnum]) -> Metadata:
    """Metadata of an enum field; unknown numbers are kept as plain int, since proto3 enums are open."""
    return {_METADATA_KEY: Field(number, Kind.ENUM, enum=enum)}


def message_of(
    number: int,
    message: type[Message],
    *,
    repeated: bool = False,
    optional: bool = False,
    oneof: str | None = None,
) -> Metadata:
    """Metadata of a field that holds another message, or a list of them."""
    shape = Shape.REPEATED if repeated else Shape.SINGLE
    return {
        _METADATA_KEY: Field(
            number, Kind.MESSAGE, shape=shape, optional=optional, oneof=oneof, message=message
        )
    }


def timestamp(number: int) -> Metadata:
    """Metadata of a `google.protobuf.Timestamp`."""
    return {_METADATA_KEY: Field(number, Kind.TIMESTAMP)}


@functools.cache
def table_of(message: type[Message]) -> Table:
    """Return the table of a message class, built once.

    Raises:
        TypeError: A field of the class carries no metadata; the class is not a message.
    """
    named: list[NamedField] = []
    for field in dataclasses.fields(message):
        spec = field.metadata.get(_METADATA_KEY)
        if not isinstance(spec, Field):
            raise TypeError(f"no field metadata: {message.__name__}.{field.name}")
        named.append(NamedField(field.name, _json_name(field.name), spec))
    named.sort(key=lambda field: field.spec.number)
    by_key = {field.name: field for field in named} | {field.json_name: field for field in named}
    return Table(tuple(named), by_key, frozenset(field.spec.oneof for field in named if field.spec.oneof))


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method of a service: what goes in, what comes out, and which of the two are streams."""

    service: str
    name: str
    request: type[Message]
    response: type[Message]
    client_stream: bool = False
    server_stream: bool = False

    @property
    def path(self) -> str:
        """The path under the daemon's base URL."""
        return f"/{self.service}/{self.name}"
