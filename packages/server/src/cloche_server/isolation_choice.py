"""Which isolation a sandbox gets, of what its creator, its template and the operator say.

Creates and templates may only strengthen what the operator has chosen, but for those that the operator lists.
"""

from __future__ import annotations

from collections.abc import Collection

from cloche_wire.errors import InvalidArgument, PermissionDenied

STRENGTH = ("container", "gvisor")
"""Drivers for real use, weakest first: what shares the host's kernel comes before what has one of its own."""


def settle(asked: str, template: str, default: str, allowed: Collection[str]) -> str:
    """Return the isolation of a new sandbox.

    Args:
        asked: By its creator; empty: whatever the template says.
        template: Said by what it is made of; empty: whatever the server's is.
        default: The server's.
        allowed: Weaker ones that the operator permits.

    Raises:
        InvalidArgument: There is none of that name.
        PermissionDenied: It is weaker than the server's or the template's, and not permitted.
    """
    for name in (asked, template):
        if name and name not in (*STRENGTH, default):
            raise InvalidArgument(f"no such isolation: {name[:80]!r}", hint=f"one of {', '.join(STRENGTH)}")
    wanted = asked or template or default
    least = max(default, template or default, key=_rank)
    if _rank(wanted) < _rank(least) and wanted not in allowed:
        raise PermissionDenied(
            f"isolation '{wanted}' is weaker than '{least}'",
            hint=f"leave isolation out, or have the operator permit it: allow_isolation = ['{wanted}']",
        )
    return wanted


def stronger(one: str, other: str) -> str:
    """The stronger of two; what is empty asks for none."""
    return max(one, other, key=_rank)


def _rank(name: str) -> int:
    return STRENGTH.index(name) if name in STRENGTH else -1
