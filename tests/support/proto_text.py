"""Reads the proto3 subset that `specs/envd` is written in: the specification as data, without a compiler."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_TOKEN = re.compile(r'\s+|//[^\n]*|"[^"]*"|[A-Za-z_][\w.]*|\d+|[{}()=;<>,]')


@dataclass(frozen=True)
class ProtoField:
    """One field; `type` is a scalar or the name as written; maps are always `map<string, string>` here."""

    name: str
    number: int
    type: str
    repeated: bool = False
    optional: bool = False
    is_map: bool = False
    oneof: str | None = None


@dataclass
class ProtoMessage:
    """One message; `name` is qualified by its parents (`ProcessEvent.StartEvent`)."""

    name: str
    fields: list[ProtoField] = field(default_factory=list[ProtoField])


@dataclass(frozen=True)
class ProtoMethod:
    name: str
    request: str
    response: str
    client_stream: bool
    server_stream: bool


@dataclass
class ProtoFile:
    package: str = ""
    imports: list[str] = field(default_factory=list[str])
    service: str = ""
    methods: list[ProtoMethod] = field(default_factory=list[ProtoMethod])
    messages: dict[str, ProtoMessage] = field(default_factory=dict[str, ProtoMessage])
    enums: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])


def read_proto(path: Path) -> ProtoFile:
    return _Reader(path.read_text(encoding="utf-8")).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            assert match, f"cannot read: {text[position : position + 40]!r}"
            if not match[0][0].isspace() and not match[0].startswith("//"):
                self._tokens.append(match[0])
            position = match.end()
        self._next = 0
        self._file = ProtoFile()

    def read(self) -> ProtoFile:
        while self._next < len(self._tokens):
            match self._take():
                case "syntax":
                    self._expect("=", '"proto3"', ";")
                case "package":
                    self._file.package = self._take()
                    self._expect(";")
                case "import":
                    self._file.imports.append(self._take().strip('"'))
                    self._expect(";")
                case "service":
                    self._read_service()
                case "enum":
                    self._read_enum()
                case "message":
                    self._read_message("")
                case other:
                    raise AssertionError(f"unexpected: {other}")
        return self._file

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1]

    def _expect(self, *tokens: str) -> None:
        for token in tokens:
            taken = self._take()
            assert taken == token, f"expected {token}, found {taken}"

    def _accept(self, token: str) -> bool:
        if self._tokens[self._next] != token:
            return False
        self._next += 1
        return True

    def _read_service(self) -> None:
        self._file.service = self._take()
        self._expect("{")
        while not self._accept("}"):
            self._expect("rpc")
            name = self._take()
            self._expect("(")
            client_stream, request = self._accept("stream"), self._take()
            self._expect(")", "returns", "(")
            server_stream, response = self._accept("stream"), self._take()
            self._expect(")", ";")
            self._file.methods.append(ProtoMethod(name, request, response, client_stream, server_stream))

    def _read_enum(self) -> None:
        values = self._file.enums.setdefault(self._take(), {})
        self._expect("{")
        while not self._accept("}"):
            name = self._take()
            self._expect("=")
            values[name] = int(self._take())
            self._expect(";")

    def _read_message(self, parent: str) -> None:
        message = ProtoMessage(f"{parent}.{self._take()}".lstrip("."))
        self._file.messages[message.name] = message
        self._expect("{")
        while not self._accept("}"):
            if self._accept("message"):
                self._read_message(message.name)
            elif self._accept("oneof"):
                oneof = self._take()
                self._expect("{")
                while not self._accept("}"):
                    message.fields.append(self._read_field(oneof))
            else:
                message.fields.append(self._read_field(None))

    def _read_field(self, oneof: str | None) -> ProtoField:
        repeated, optional = self._accept("repeated"), self._accept("optional")
        kind, is_map = self._take(), False
        if kind == "map":
            self._expect("<", "string", ",", "string", ">")
            kind, is_map = "string", True
        name = self._take()
        self._expect("=")
        number = int(self._take())
        self._expect(";")
        return ProtoField(name, number, kind, repeated, optional, is_map, oneof)


def resolve(file: ProtoFile, message: ProtoMessage, name: str) -> str:
    """Return the qualified name that a field type means inside a message: the innermost scope wins."""
    scope = message.name
    while scope:
        if f"{scope}.{name}" in file.messages:
            return f"{scope}.{name}"
        scope = scope.rpartition(".")[0]
    return name
