"""`.dockerignore`: which files of a folder do not belong to the context of a build."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    excludes: bool


class Ignore:
    """Patterns in order: the last one that fits a path, or a folder above it, says what holds for it."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        """Take the lines of a `.dockerignore`."""
        self._rules = [rule for line in lines if (rule := _rule(line))]

    def excludes(self, path: str) -> bool:
        """Whether a file or folder, named relative to the context with `/`, is left out."""
        answer = False
        for rule in self._rules:
            if rule.pattern.match(path):
                answer = rule.excludes
        return answer

    @property
    def has_exceptions(self) -> bool:
        """Whether something below a folder that is left out may belong to the context after all."""
        return any(not rule.excludes for rule in self._rules)


def _rule(line: str) -> _Rule | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    excludes = not text.startswith("!")
    cleaned = str(PurePosixPath("/", text.removeprefix("!").strip()))[1:]
    return _Rule(re.compile(f"{pattern_of(cleaned)}(?:/.*)?\\Z", re.DOTALL), excludes) if cleaned else None


def pattern_of(text: str) -> str:
    """Return a regular expression for a pattern of Docker: `*` and `?` within a name, `**` across folders."""
    parts: list[str] = []
    position = 0
    while position < len(text):
        letter = text[position]
        if text.startswith("**/", position):
            parts.append("(?:.*/)?")
            position += 3
        elif text.startswith("**", position):
            parts.append(".*")
            position += 2
        elif letter == "[" and (end := text.find("]", position + 2)) > 0:
            inside = text[position + 1 : end].replace("\\", "\\\\")
            parts.append(f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            position = end + 1
        else:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(letter) or re.escape(letter))
            position += 1
    return "".join(parts)
