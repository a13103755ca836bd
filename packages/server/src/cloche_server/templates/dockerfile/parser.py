"""The text of a Dockerfile, taken apart: instructions with their lines, flags, words and heredocs.

Ours, since the parsers of PyPI know no heredocs: `dockerfile-parse` 2.0.1 takes their lines for instructions.
What is built here does not matter to this module, and the values of variables do not either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from cloche_server.templates.dockerfile.problem import refuse

MAX_BYTES = 1 << 20

_DIRECTIVE = re.compile(r"#\s*(\w+)\s*=\s*(\S+)\s*\Z")
_INSTRUCTION = re.compile(r"\s*([A-Za-z]+)(?:\s+(.*))?\Z", re.DOTALL)
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S*))?(?:\s+|\Z)")
_HEREDOC = re.compile(r"(?:^|(?<=\s)|(?<=\d))<<(-?)([\"']?)([A-Za-z_][A-Za-z0-9_.]*)\2")
_WITH_HEREDOCS = frozenset(("RUN", "COPY", "ADD"))


class Heredoc(NamedTuple):
    """Text that stands below an instruction."""

    name: str
    content: str
    is_quoted: bool
    """Whether variables in it stay as they are."""


class Instruction(NamedTuple):
    """One instruction."""

    line: int
    """Where it begins, from 1 on."""
    name: str
    flags: dict[str, str]
    text: str
    """What follows the flags, continued lines joined."""
    heredocs: tuple[Heredoc, ...] = ()

    @property
    def words_of_json(self) -> list[str] | None:
        """Its words where it is written as a JSON list; None where it is not."""
        if not self.text.startswith("["):
            return None
        try:
            return msgspec.json.decode(self.text, type=list[str])
        except msgspec.DecodeError:
            return None


class _Lines:
    """The lines of the text, taken one after the other."""

    def __init__(self, text: str) -> None:
        self._lines = text.removeprefix("\ufeff").split("\n")
        self.number = 0
        self.escape = "\\"
        self._read_directives()

    def _read_directives(self) -> None:
        while self.number < len(self._lines) and (
            found := _DIRECTIVE.match(self._lines[self.number].strip())
        ):
            name, value = found[1].lower(), found[2]
            self.number += 1
            if name == "escape":
                if value not in ("\\", "`"):
                    raise refuse(self.number, f"not an escape character: {value[:20]!r}")
                self.escape = value
            elif name not in ("syntax", "check"):
                return  # a comment that only looks like one, and ends them

    def take(self) -> str | None:
        if self.number >= len(self._lines):
            return None
        self.number += 1
        return self._lines[self.number - 1].removesuffix("\r")

    def logical(self) -> tuple[int, str] | None:
        """The next line that says something, with those that continue it; comments within are left out."""
        while (line := self.take()) is not None:
            if line.strip() and not line.lstrip().startswith("#"):
                break
        if line is None:
            return None
        first, parts = self.number, list[str]()
        while line is not None:
            continues = self._continuation(line)
            parts.append(line if continues is None else continues)
            if continues is None:
                break
            line = self._next_within()
        return first, "".join(parts).strip()

    def _continuation(self, line: str) -> str | None:
        stripped = line.rstrip()
        return stripped[:-1] if stripped.endswith(self.escape) else None

    def _next_within(self) -> str | None:
        while (line := self.take()) is not None:
            if line.strip() and not line.lstrip().startswith("#"):
                return line
        return None

    def heredoc(self, begun: int, name: str, *, strips_tabs: bool) -> str:
        lines: list[str] = []
        while (line := self.take()) is not None:
            shown = line.lstrip("\t") if strips_tabs else line
            if shown == name:
                return "".join(f"{kept}\n" for kept in lines)
            lines.append(shown)
        raise refuse(begun, f"the text up to {name!r} has no end")


def parse(text: str) -> list[Instruction]:
    """Take a Dockerfile apart.

    Raises:
        DockerfileError: It is none; the message names the line.
    """
    if len(text.encode()) > MAX_BYTES or "\0" in text:
        raise refuse(1, f"not a Dockerfile: longer than {MAX_BYTES} bytes, or with a NUL in it")
    found = list(_instructions(_Lines(text)))
    if not found:
        raise refuse(1, "an empty Dockerfile")
    return found


def _instructions(lines: _Lines) -> Iterator[Instruction]:
    while (taken := lines.logical()) is not None:
        line, text = taken
        match = _INSTRUCTION.match(text)
        if match is None:
            raise refuse(line, f"not an instruction: {text[:80]!r}")
        name, rest = match[1].upper(), (match[2] or "").strip()
        flags: dict[str, str] = {}
        while flag := _FLAG.match(rest):
            if flag[1] in flags:
                raise refuse(line, f"the flag --{flag[1]} stands there twice")
            flags[flag[1]] = flag[2] or ""
            rest = rest[flag.end() :]
        heredocs: list[Heredoc] = []
        if name in _WITH_HEREDOCS and not rest.startswith("["):
            for opened in _HEREDOC.finditer(rest):
                content = lines.heredoc(line, opened[3], strips_tabs=bool(opened[1]))
                heredocs.append(Heredoc(opened[3], content, bool(opened[2])))
        yield Instruction(line, name, flags, rest, tuple(heredocs))


def split_words(instruction: Instruction, escape: str = "\\") -> list[str]:
    r"""Split at blanks outside quotes. Quotes go; a dollar that they or a backslash have quoted is `\$`.

    Raises:
        DockerfileError: A quote has no end.
    """
    words: list[str] = []
    word: list[str] = []
    quote, is_open = "", False
    letters = iter(instruction.text)
    for letter in letters:
        if letter == escape and quote != "'":
            following = next(letters, "")
            word.append(f"\\{following}" if following == "$" else following)
            is_open = True
        elif letter == quote:
            quote = ""
        elif not quote and letter in "\"'":
            quote, is_open = letter, True
        elif not quote and letter.isspace():
            if is_open or word:
                words.append("".join(word))
            word, is_open = [], False
        else:
            word.append("\\$" if letter == "$" and quote == "'" else letter)
    if quote:
        raise refuse(instruction.line, f"the quote {quote} has no end")
    return [*words, "".join(word)] if is_open or word else words
