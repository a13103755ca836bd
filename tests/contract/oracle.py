"""An independent codec for the daemon's messages: protobuf-py classes made from the text of `specs/envd`.

No protobuf compiler is needed: the specification is turned into file descriptors, which is all that the code
generated for protobuf-py holds too.
"""

from __future__ import annotations

import functools
from pathlib import Path

from protobuf import Message
from protobuf._codegen import file_desc
from protobuf.wkt.google.protobuf import descriptor_pb as pb
from protobuf.wkt.google.protobuf import timestamp_pb

from tests.support.proto_text import ProtoField, ProtoFile, ProtoMessage, read_proto, resolve

SPECS = Path(__file__).parents[2] / "specs" / "envd"

_Type = pb.FieldDescriptorProto.Type
_Label = pb.FieldDescriptorProto.Label
_SCALARS = {
    name: getattr(_Type, name.upper()) for name in ("string", "bytes", "bool", "sint32", "uint32", "int64")
}


@functools.cache
def oracle_classes(package: str) -> dict[str, type[Message]]:
    """Return the protobuf-py class of each message of a specification file by its name."""
    file = read_proto(SPECS / f"{package}.proto")
    classes = {name: _message_class(message) for name, message in file.messages.items()}
    descriptor = file_descriptor(file)
    file_desc(descriptor.to_binary(), [timestamp_pb.desc()], classes)
    return classes


def file_descriptor(file: ProtoFile) -> pb.FileDescriptorProto:
    """Return what a protobuf compiler would make of the file, without options and services."""
    tops = [message for name, message in file.messages.items() if "." not in name]
    return pb.FileDescriptorProto(
        name=f"{file.package}/{file.package}.proto",
        package=file.package,
        dependency=list(file.imports),
        syntax="proto3",
        message_type=[_descriptor(file, message) for message in tops],
        enum_type=[
            pb.EnumDescriptorProto(
                name=name,
                value=[
                    pb.EnumValueDescriptorProto(name=key, number=number) for key, number in values.items()
                ],
            )
            for name, values in file.enums.items()
        ],
    )


def _message_class(message: ProtoMessage) -> type[Message]:
    slots = tuple(dict.fromkeys(field.oneof or field.name for field in message.fields))
    return type(message.name.rpartition(".")[2], (Message,), {"__slots__": slots})


def _descriptor(file: ProtoFile, message: ProtoMessage) -> pb.DescriptorProto:
    nested = [
        _descriptor(file, other)
        for name, other in file.messages.items()
        if name.rpartition(".")[0] == message.name
    ]
    maps = [_map_entry(field) for field in message.fields if field.is_map]
    oneofs = list(dict.fromkeys(field.oneof for field in message.fields if field.oneof))
    synthetic = [f"_{field.name}" for field in message.fields if field.optional]
    return pb.DescriptorProto(
        name=message.name.rpartition(".")[2],
        field=[_field(file, message, field, oneofs + synthetic) for field in message.fields],
        nested_type=nested + maps,
        oneof_decl=[pb.OneofDescriptorProto(name=name) for name in oneofs + synthetic],
    )


def _field(
    file: ProtoFile, message: ProtoMessage, field: ProtoField, oneofs: list[str]
) -> pb.FieldDescriptorProto:
    descriptor = pb.FieldDescriptorProto(
        name=field.name,
        number=field.number,
        json_name=_json_name(field.name),
        label=_Label.REPEATED if field.repeated or field.is_map else _Label.OPTIONAL,
    )
    if field.is_map:
        descriptor.type = _Type.MESSAGE
        descriptor.type_name = f".{file.package}.{message.name}.{_entry_name(field)}"
    elif field.type in _SCALARS:
        descriptor.type = _SCALARS[field.type]
    else:
        descriptor.type = _Type.ENUM if field.type in file.enums else _Type.MESSAGE
        name = resolve(file, message, field.type)
        descriptor.type_name = f".{name}" if name.startswith("google.") else f".{file.package}.{name}"
    if field.oneof:
        descriptor.oneof_index = oneofs.index(field.oneof)
    if field.optional:
        descriptor.oneof_index = oneofs.index(f"_{field.name}")
        descriptor.proto3_optional = True
    return descriptor


def _map_entry(field: ProtoField) -> pb.DescriptorProto:
    return pb.DescriptorProto(
        name=_entry_name(field),
        field=[
            pb.FieldDescriptorProto(
                name=name, number=number, label=_Label.OPTIONAL, type=_Type.STRING, json_name=name
            )
            for number, name in ((1, "key"), (2, "value"))
        ],
        options=pb.MessageOptions(map_entry=True),
    )


def _entry_name(field: ProtoField) -> str:
    return field.name.capitalize() + "Entry"


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
