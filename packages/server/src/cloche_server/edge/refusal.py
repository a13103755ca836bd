"""The way out of any step of the edge: what it answers instead of passing the request on."""

from __future__ import annotations

from dataclasses import dataclass

NOT_FOUND = "The sandbox was not found"
PORT_CLOSED = "The sandbox is running but port is not open"
"""Official clients look for these words (wire contract, fact 10)."""
_SECURED = "Sandbox is secured with traffic access token. "
TOKEN_MISSING = _SECURED + "Token header 'e2b-traffic-access-token' is missing"
TOKEN_WRONG = _SECURED + "Provided token in header 'e2b-traffic-access-token' is invalid"


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """The edge answers by itself, with this status."""

    status: int
    message: str
    sandbox_id: str | None = None
    port: int | None = None
    connection_limit: int | None = None
    fields: tuple[tuple[bytes, bytes], ...] = ()
    """Further headers of the answer."""
    closes: bool = False
    """Whether the connection has to be closed after it."""

    def __str__(self) -> str:
        return f"{self.status} {self.message}"


def sandbox_not_found(sandbox_id: str) -> Refusal:
    """Answer for a sandbox that is not there, whatever the reason."""
    return Refusal(502, NOT_FOUND, sandbox_id)
