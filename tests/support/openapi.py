"""Read our OpenAPI text and hold answers against it, as far as we use both: plain YAML, plain schemas."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

_ENTRY = re.compile(r'(?P<key>"[^"]*"|[^\s:{\[#][^:]*):(?:\s+(?P<value>.*))?\Z')
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def load(path: Path) -> dict[str, Any]:
    """Return the document in the file: block mappings and lists, flow values, no multi-line text."""
    lines = [line.rstrip() for line in path.read_text().splitlines()]
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    value, rest = _block(lines, 0)
    assert rest == len(lines), lines[rest]
    return value


def misfits(document: dict[str, Any], schema: dict[str, Any], value: Any, place: str = "$") -> list[str]:
    """Say where the value breaks the schema. Members that the schema does not name are misfits, too."""
    if "$ref" in schema:
        return misfits(document, resolve(document, schema), value, place)
    if "type" not in schema:
        return []  # anything
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, _KINDS[kind]) for kind in kinds) or (
        isinstance(value, bool) and "boolean" not in kinds
    ):
        return [f"{place}: {value!r} is not {kinds}"]
    found: list[str] = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place}: {value!r} is none of {schema['enum']}")
    if (
        schema.get("format") == "date-time"
        and value is not None
        and datetime.fromisoformat(value).tzinfo is None
    ):
        found.append(f"{place}: no time zone")
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += misfits(document, schema["items"], item, f"{place}[{number}]")
    if isinstance(value, dict):
        found += _misfits_of_object(document, schema, value, place)
    return found


def resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference, if the node is one."""
    if "$ref" not in node:
        return node
    found: Any = document
    for name in node["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def _misfits_of_object(
    document: dict[str, Any], schema: dict[str, Any], value: dict[str, Any], place: str
) -> list[str]:
    found = [f"{place}.{name} is missing" for name in schema.get("required", []) if name not in value]
    members = schema.get("properties", {})
    for name, item in value.items():
        member = members.get(name, schema.get("additionalProperties"))
        if member is None:
            found.append(f"{place}.{name} is not in the schema")
        else:
            found += misfits(document, member, item, f"{place}.{name}")
    return found


# --- YAML --------------------


def _block(lines: list[str], at: int) -> tuple[Any, int]:
    depth = _depth(lines[at])
    if lines[at].lstrip().startswith("- "):
        items: list[Any] = []
        while at < len(lines) and _depth(lines[at]) == depth and lines[at].lstrip().startswith("- "):
            items.append(_scalar(lines[at].lstrip()[2:]))
            at += 1
        return items, at
    members: dict[str, Any] = {}
    while at < len(lines) and _depth(lines[at]) == depth:
        match = _ENTRY.match(lines[at].strip())
        assert match is not None, lines[at]
        key = match["key"].strip('"')
        assert key not in members, key
        at += 1
        if match["value"] is not None:
            members[key] = _scalar(match["value"])
        else:
            members[key], at = _block(lines, at)
    return members, at


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _scalar(text: str) -> Any:
    if text[0] not in "{[":
        return text[1:-1] if text[0] == '"' else _plain(text)
    value, at = _flow(text, 0)
    assert not text[at:].strip(), text
    return value


def _flow(text: str, at: int) -> tuple[Any, int]:
    """One flow value from position `at`, and where it ends."""
    while text[at] == " ":
        at += 1
    if text[at] == '"':
        end = text.index('"', at + 1)
        return text[at + 1 : end], end + 1
    if text[at] not in "{[":
        end = min(position for mark in ",}]" if (position := text.find(mark, at)) >= 0)
        return _plain(text[at:end].strip()), end
    closing = "}" if text[at] == "{" else "]"
    members: dict[str, Any] = {}
    items: list[Any] = []
    at += 1
    while text[at:].lstrip()[0] != closing:
        if closing == "}":
            colon = text.index(": ", at)
            key = text[at:colon].strip(' ,"')
            members[key], at = _flow(text, colon + 2)
        else:
            item, at = _flow(text, at)
            items.append(item)
        at = text.index(text[at:].lstrip()[0], at)
        if text[at] == ",":
            at += 1
    return (members if closing == "}" else items), text.index(closing, at) + 1


def _plain(text: str) -> Any:
    constants: dict[str, Any] = {"true": True, "false": False, "null": None}
    if text in constants:
        return constants[text]
    return int(text) if re.fullmatch(r"-?\d+", text) else text
