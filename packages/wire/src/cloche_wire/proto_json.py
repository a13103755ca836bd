"""The proto3 JSON codec, driven by the field tables of the messages.

Writes what protobuf's own JSON mapping writes: lowerCamelCase names, zero values and unset fields left out,
bytes in base64, 64-bit integers as strings, enums by name, timestamps in RFC 3339. Reads more than it
writes, as the mapping asks: snake_case names, enum numbers, url-safe or unpadded base64, numbers in
strings, null for unset, unknown fields ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

from cloche_wire import proto_scalars
from cloche_wire.errors import InvalidArgument
from cloche_wire.messages.schema import Field, Kind, Message, NamedField, Shape, table_of
from cloche_wire.messages.timestamp import Timestamp

M = TypeVar("M", bound=Message)

_INT_RANGES = {
    Kind.INT32: (-(2**31), 2**31 - 1),
    Kind.SINT32: (-(2**31), 2**31 - 1),
    Kind.UINT32: (0, 2**32 - 1),
    Kind.INT64: (-(2**63), 2**63 - 1),
}


def encode(message: Message) -> bytes:
    """Return the message as JSON text without spaces.

    Raises:
        InvalidArgument: Two members of a oneof are set; the field path names the second.
    """
    return json.dumps(to_dict(message), separators=(",", ":"), ensure_ascii=False).encode()


def to_dict(message: Message) -> dict[str, Any]:
    """Return the message as the object that `encode` writes.

    Raises:
        InvalidArgument: Two members of a oneof are set; the field path names the second.
    """
    return {field.json_name: _write_field(field.spec, value) for field, value in present_fields(message)}


def present_fields(message: Message) -> Iterator[tuple[NamedField, Any]]:
    """The fields that are to be written, with their values, in order of their numbers.

    Raises:
        InvalidArgument: Two members of a oneof are set; the field path names the second.
    """
    chosen: set[str] = set()
    for field in table_of(type(message)).fields:
        spec = field.spec
        value = getattr(message, field.name)
        if _is_absent(spec, value):
            continue
        if spec.oneof is not None:
            if spec.oneof in chosen:
                raise InvalidArgument(f"second member of oneof {spec.oneof}: {field.name}")
            chosen.add(spec.oneof)
        yield field, value


def decode(cls: type[M], data: bytes) -> M:
    """Read one message from JSON text.

    Raises:
        InvalidArgument: Not JSON, not UTF-8, or not a message of this class; the text names the field path.
    """
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"malformed json: {str(error)[:200]}") from error
    return from_dict(cls, value)


def from_dict(cls: type[M], data: object) -> M:
    """Read one message from a JSON object.

    Raises:
        InvalidArgument: Not a message of this class; the text names the field path.
    """
    return _read_message(cls, data, "")


def _refuse_constant(text: str) -> object:
    raise ValueError(f"constant out of range: {text}")


def _is_absent(spec: Field, value: object) -> bool:
    if value is None:
        return True
    if spec.optional or spec.oneof is not None or (spec.shape is Shape.SINGLE and spec.kind is Kind.MESSAGE):
        return False
    return spec.kind is not Kind.TIMESTAMP and not value


def _write_field(spec: Field, value: Any) -> object:  # noqa: ANN401 - a field's own type
    match spec.shape:
        case Shape.SINGLE:
            return _write_value(spec, value)
        case Shape.REPEATED:
            return [_write_value(spec, item) for item in value]
        case Shape.STRING_MAP:
            return {
                proto_scalars.write_string(key): proto_scalars.write_string(item)
                for key, item in value.items()
            }


def _write_value(spec: Field, value: Any) -> object:  # noqa: ANN401 - a field's own type
    match spec.kind:
        case Kind.STRING:
            return proto_scalars.write_string(value)
        case Kind.BYTES:
            return proto_scalars.write_bytes(value)
        case Kind.BOOL:
            return bool(value)
        case Kind.INT64:
            return str(int(value))
        case Kind.INT32 | Kind.SINT32 | Kind.UINT32:
            return int(value)
        case Kind.ENUM:
            assert spec.enum is not None
            return proto_scalars.write_enum(spec.enum, value)
        case Kind.TIMESTAMP:
            return value.to_rfc3339()
        case Kind.MESSAGE:
            return to_dict(value)


def _read_message(cls: type[M], data: object, path: str) -> M:
    if not isinstance(data, Mapping):
        raise InvalidArgument(f"expected an object: {path or 'message'}")
    items = cast("Mapping[str, object]", data)
    table = table_of(cls)
    values: dict[str, object] = {}
    chosen: set[str] = set()
    for key, value in items.items():
        field = table.by_key.get(key)
        if field is None or value is None:
            continue
        here = f"{path}.{field.json_name}" if path else field.json_name
        if field.name in values:
            raise InvalidArgument(f"field given twice: {here}")
        oneof = field.spec.oneof
        if oneof is not None:
            if oneof in chosen:
                raise InvalidArgument(f"second member of oneof {oneof}: {here}")
            chosen.add(oneof)
        values[field.name] = _read_field(field, value, here)
    return cls(**values)


def _read_field(field: NamedField, value: object, path: str) -> object:
    spec = field.spec
    match spec.shape:
        case Shape.SINGLE:
            return _read_value(spec, value, path)
        case Shape.REPEATED:
            if not isinstance(value, list):
                raise InvalidArgument(f"expected a list: {path}")
            items = cast("list[object]", value)
            return [_read_value(spec, item, f"{path}[{index}]") for index, item in enumerate(items)]
        case Shape.STRING_MAP:
            if not isinstance(value, Mapping):
                raise InvalidArgument(f"expected an object: {path}")
            entries = cast("Mapping[object, object]", value)
            return {
                proto_scalars.read_string(key, path): proto_scalars.read_string(item, f"{path}[{key!r}]")
                for key, item in entries.items()
            }


def _read_value(spec: Field, value: object, path: str) -> object:
    match spec.kind:
        case Kind.STRING:
            return proto_scalars.read_string(value, path)
        case Kind.BYTES:
            return proto_scalars.read_bytes(value, path)
        case Kind.BOOL:
            if not isinstance(value, bool):
                raise InvalidArgument(f"expected true or false: {path}")
            return value
        case Kind.ENUM:
            assert spec.enum is not None
            return proto_scalars.read_enum(spec.enum, value, path)
        case Kind.TIMESTAMP:
            return _read_timestamp(value, path)
        case Kind.MESSAGE:
            assert spec.message is not None
            return _read_message(spec.message, value, path)
        case Kind.INT32 | Kind.SINT32 | Kind.UINT32 | Kind.INT64:
            return proto_scalars.read_int(value, path, *_INT_RANGES[spec.kind])


def _read_timestamp(value: object, path: str) -> Timestamp:
    try:
        return Timestamp.from_rfc3339(proto_scalars.read_string(value, path))
    except ValueError as error:
        raise InvalidArgument(f"expected an RFC 3339 time: {path}") from error
