"""The proto3 binary codec, driven by the same field tables as the JSON one.

E2B's own clients speak JSON; Connect clients of other languages, Go's above all, speak this unless told
otherwise. Reads what proto3 asks a parser to read: fields in any order, repeated ones of a kind that is not
(the last wins, messages are merged), unknown fields of every wire type but groups.

See: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, TypeVar

from cloche_wire import proto_scalars
from cloche_wire.errors import InvalidArgument
from cloche_wire.messages.schema import Field, Kind, Message, NamedField, Shape, Table, table_of
from cloche_wire.messages.timestamp import Timestamp
from cloche_wire.proto_json import present_fields

M = TypeVar("M", bound=Message)

_VARINT: Final = 0
_LENGTH: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}
_LONGEST_VARINT: Final = 10
_64_BITS: Final = (1 << 64) - 1
_IN_BYTES: Final = frozenset({Kind.STRING, Kind.BYTES, Kind.MESSAGE, Kind.TIMESTAMP})


def encode(message: Message) -> bytes:
    """Return the message as protobuf bytes.

    Raises:
        InvalidArgument: Two members of a oneof are set.
    """
    out = bytearray()
    for field, value in present_fields(message):
        spec = field.spec
        match spec.shape:
            case Shape.SINGLE:
                _write(out, spec, value)
            case Shape.REPEATED:
                for item in value:
                    _write(out, spec, item)
            case Shape.STRING_MAP:
                for key, item in value.items():
                    _write_length(out, spec.number, _map_entry(key, item))
    return bytes(out)


def decode(cls: type[M], data: bytes) -> M:
    """Read one message from protobuf bytes.

    Raises:
        InvalidArgument: Not a message of this class; the text names the field.
    """
    table = table_of(cls)
    by_number = {field.spec.number: field for field in table.fields}
    values: dict[str, Any] = {}
    merged: dict[str, bytes] = {}
    for number, wire_type, value in _fields(data):
        field = by_number.get(number)
        if field is None:
            continue
        spec = field.spec
        if wire_type != (_LENGTH if spec.kind in _IN_BYTES else _VARINT):
            raise InvalidArgument(f"wrong wire type: {field.name}")
        for name in _rivals(table, field):
            values.pop(name, None)
            merged.pop(name, None)
        if spec.shape is Shape.REPEATED:
            values.setdefault(field.name, []).append(_read(field, value))
        elif spec.shape is Shape.STRING_MAP:
            values.setdefault(field.name, {}).update(_read_map_entry(field, value))
        elif isinstance(value, bytes) and spec.kind in (Kind.MESSAGE, Kind.TIMESTAMP):
            merged[field.name] = (
                merged.get(field.name, b"") + value
            )  # to merge is to read one after the other
        else:
            values[field.name] = _read(field, value)
    for field in table.fields:
        if field.name in merged:
            values[field.name] = _read(field, merged[field.name])
    return cls(**values)


def _rivals(table: Table, field: NamedField) -> list[str]:
    """Names of the other members of the field's oneof: of all of them, the last that comes counts."""
    oneof = field.spec.oneof
    if oneof is None:
        return []
    return [other.name for other in table.fields if other.spec.oneof == oneof and other is not field]


def _write(out: bytearray, spec: Field, value: Any) -> None:  # noqa: ANN401 - a field's own type
    match spec.kind:
        case Kind.STRING:
            _write_length(out, spec.number, proto_scalars.write_string(value).encode())
        case Kind.BYTES:
            _write_length(out, spec.number, bytes(value))
        case Kind.MESSAGE:
            _write_length(out, spec.number, encode(value))
        case Kind.TIMESTAMP:
            _write_length(out, spec.number, _timestamp(value))
        case Kind.SINT32:
            _write_varint_field(out, spec.number, (value << 1) ^ (value >> 31))
        case Kind.BOOL | Kind.INT32 | Kind.UINT32 | Kind.INT64 | Kind.ENUM:
            _write_varint_field(out, spec.number, int(value))


def _write_varint(out: bytearray, value: int) -> None:
    value &= _64_BITS  # negative numbers take all ten bytes
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_varint_field(out: bytearray, number: int, value: int) -> None:
    _write_varint(out, number << 3 | _VARINT)
    _write_varint(out, value)


def _write_length(out: bytearray, number: int, data: bytes) -> None:
    _write_varint(out, number << 3 | _LENGTH)
    _write_varint(out, len(data))
    out += data


def _map_entry(key: str, value: str) -> bytes:
    entry = bytearray()
    for number, text in ((1, key), (2, value)):
        _write_length(entry, number, proto_scalars.write_string(text).encode())
    return bytes(entry)


def _timestamp(value: Timestamp) -> bytes:
    out = bytearray()
    for number, part in ((1, value.seconds), (2, value.nanos)):
        if part:
            _write_varint_field(out, number, part)
    return bytes(out)


def _fields(data: bytes) -> list[tuple[int, int, int | bytes]]:
    """Every field as (number, wire type, value): a number for varints, else bytes."""
    found: list[tuple[int, int, int | bytes]] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise InvalidArgument(f"malformed protobuf: field number {number}")
        if wire_type == _VARINT:
            value, at = _varint(data, at)
            found.append((number, wire_type, value))
            continue
        if wire_type == _LENGTH:
            size, at = _varint(data, at)
        elif wire_type in _FIXED_BYTES:
            size = _FIXED_BYTES[wire_type]
        else:
            raise InvalidArgument(f"malformed protobuf: wire type {wire_type}")
        if size > len(data) - at:
            raise InvalidArgument("malformed protobuf: ends early")
        found.append((number, wire_type, data[at : at + size]))
        at += size
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & _64_BITS, at + place + 1
    raise InvalidArgument("malformed protobuf: bad varint")


def _read(field: NamedField, value: int | bytes) -> object:
    spec = field.spec
    if isinstance(value, bytes):
        match spec.kind:
            case Kind.STRING:
                return _text(value, field.name)
            case Kind.MESSAGE:
                assert spec.message is not None
                return decode(spec.message, value)
            case Kind.TIMESTAMP:
                return _read_timestamp(field, value)
            case _:
                return value
    match spec.kind:
        case Kind.BOOL:
            return value != 0
        case Kind.UINT32:
            return value & 0xFFFFFFFF
        case Kind.SINT32:
            value &= 0xFFFFFFFF
            return (value >> 1) ^ -(value & 1)
        case Kind.INT64:
            return _signed(value, 64)
        case Kind.ENUM:
            assert spec.enum is not None
            return _member(spec.enum, _signed(value, 32))
        case _:
            return _signed(value, 32)


def _member(enum: type[IntEnum], number: int) -> int:
    try:
        return enum(number)
    except ValueError:
        return number


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"text is not utf-8: {name}") from error


def _read_map_entry(field: NamedField, value: int | bytes) -> dict[str, str]:
    parts = {1: "", 2: ""}
    for number, wire_type, part in _fields(value if isinstance(value, bytes) else b""):
        if number in parts:
            if wire_type != _LENGTH or not isinstance(part, bytes):
                raise InvalidArgument(f"wrong wire type: {field.name}")
            parts[number] = _text(part, field.name)
    return {parts[1]: parts[2]}


def _read_timestamp(field: NamedField, value: bytes) -> Timestamp:
    parts = {1: 0, 2: 0}
    for number, wire_type, part in _fields(value):
        if number in parts:
            if wire_type != _VARINT or not isinstance(part, int):
                raise InvalidArgument(f"wrong wire type: {field.name}")
            parts[number] = _signed(part, 64 if number == 1 else 32)
    try:
        return Timestamp(parts[1], parts[2])
    except ValueError as error:
        raise InvalidArgument(f"time out of range: {field.name}") from error
