"""Names of hosts: one spelling for each, and whether a policy's list has them. No input or output."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_MAX_NAME = 253


def normalise(text: str) -> str | None:
    """Return the one spelling of a host's name: ASCII, lower case, no dot at its end; None if it is none.

    A name whose last label is a number is an address to some programs and never a name here (RFC 3696 2).
    """
    name = text.removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return None
    name = name.lower()
    labels = name.split(".")
    if not 1 <= len(name) <= _MAX_NAME or not all(map(_LABEL.match, labels)):
        return None
    last = labels[-1]
    return None if last.isdigit() or last.startswith("0x") else name


def normalise_pattern(text: str) -> str | None:
    """The same for an entry of a list: a name, or `*.` and a name of at least two labels."""
    if not text.startswith("*."):
        return normalise(text)
    name = normalise(text[2:])
    return None if name is None or "." not in name else f"*.{name}"


def is_listed(name: str, patterns: Iterable[str]) -> bool:
    """Whether a normalised name is in the list: `*.a.b` has every name below `a.b`, and not that itself."""
    return any(
        name == pattern or (pattern.startswith("*.") and name.endswith(pattern[1:])) for pattern in patterns
    )
