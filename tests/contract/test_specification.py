"""`specs/envd` says what the official client's own descriptors say: names, numbers, types, streams."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.proto_text import ProtoField, ProtoFile, ProtoMessage, read_proto, resolve

SPECS = Path(__file__).parents[2] / "specs" / "envd"
OFFICIAL = json.loads((Path(__file__).parent / "official_descriptors.json").read_text(encoding="utf-8"))

PACKAGES = ("process", "filesystem")


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_have_the_official_fields(package: str) -> None:
    file = read_proto(SPECS / f"{package}.proto")
    ours = {
        name: {field.name: _fact(file, message, field) for field in message.fields}
        for name, message in file.messages.items()
    }
    assert ours == OFFICIAL[package]["messages"]


@pytest.mark.parametrize("package", PACKAGES)
def test_enums_have_the_official_numbers(package: str) -> None:
    assert read_proto(SPECS / f"{package}.proto").enums == OFFICIAL[package]["enums"]


@pytest.mark.parametrize("package", PACKAGES)
def test_methods_have_the_official_types_and_streams(package: str) -> None:
    file = read_proto(SPECS / f"{package}.proto")
    ours = {
        method.name: f"{'stream ' * method.client_stream}{method.request}"
        f" -> {'stream ' * method.server_stream}{method.response}"
        for method in file.methods
    }
    assert f"{file.package}.{file.service}" == OFFICIAL[package]["service"]
    assert ours == OFFICIAL[package]["methods"]


def _fact(file: ProtoFile, message: ProtoMessage, field: ProtoField) -> str:
    words = [str(field.number)]
    if field.repeated:
        words.append("repeated")
    if field.optional:
        words.append("optional")
    if field.oneof:
        words.append(f"oneof {field.oneof}")
    words.append("map" if field.is_map else resolve(file, message, field.type))
    return " ".join(words)
