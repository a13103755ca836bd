"""Names of sandbox ports: `{port}-{sandbox}.{domain}`."""

from __future__ import annotations

import re
from typing import NamedTuple

_LABEL = re.compile(r"([1-9][0-9]{0,4})-([a-z0-9]{1,40})(?:-[a-z0-9]{1,40})?\Z")
_PORT_SUFFIX = re.compile(r":[0-9]{1,5}\Z")
_ID_WITH_CLIENT = re.compile(r"([a-z0-9]{1,40})(?:-[a-z0-9]{1,40})?\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
_MAX_PORT = 65535


class PortAddress(NamedTuple):
    """A port of a sandbox."""

    port: int
    sandbox_id: str


def parse_host(host: str) -> PortAddress | None:
    """Return which port of which sandbox a Host header names, or None if it names none.

    The first label is `{port}-{id}`, or `{port}-{id}-{client}` of old clients, whose last part is ignored;
    at least one more label has to follow. Ports are plain decimals from 1 to 65535.
    """
    name = _PORT_SUFFIX.sub("", host.lower())
    label, dot, domain = name.partition(".")
    match = _LABEL.match(label)
    if match is None or not dot or not domain or domain.startswith("."):
        return None
    port = int(match[1])
    return PortAddress(port, match[2]) if port <= _MAX_PORT else None


def parse_port(text: str) -> int | None:
    """Return the port of a routing header: a plain decimal from 1 to 65535, else None."""
    if not _PORT.match(text):
        return None
    port = int(text)
    return port if port <= _MAX_PORT else None


def parse_sandbox_id(text: str) -> str | None:
    """Return a sandbox id without the `-{client}` that old clients append; None if it is not an id."""
    match = _ID_WITH_CLIENT.match(text)
    return match[1] if match else None


def format_host(port: int, sandbox_id: str, domain: str) -> str:
    """Return the public name of a port; the domain may carry a port of its own."""
    return f"{port}-{sandbox_id}.{domain}"
