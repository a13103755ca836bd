"""Signed file URLs: reading or writing one file of a sandbox without its token.

The form is fixed by the clients: `v1_` and base64(sha256(`path:operation:user:token[:expiry]`)) without
padding. The parts are joined by colons, so a user name with a colon could turn one signed text into
another: user names are checked before anything is compared.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from cloche_wire.errors import InvalidArgument, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Iterable

Operation: TypeAlias = Literal["read", "write"]

_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
_EXPIRY = re.compile(r"(0|[1-9][0-9]{0,15})\Z")
_PREFIX = "v1_"
_PARAMETERS = ("path", "username", "signature", "signature_expiration")


def sign(path: str, operation: Operation, user: str | None, token: str, expires_at: int | None = None) -> str:
    """Return the signature of one file operation.

    Args:
        path: The path as the caller writes it, not resolved.
        operation: Reading or writing.
        user: User of the sandbox; None or "" for its default user.
        token: The sandbox's access token.
        expires_at: Unix time in seconds after which the URL is dead; None for as long as the sandbox lives.
    """
    parts = [path, operation, user or "", token]
    if expires_at is not None:
        parts.append(str(expires_at))
    digest = hashlib.sha256(":".join(parts).encode("utf-8", "surrogatepass")).digest()
    return _PREFIX + base64.b64encode(digest).decode("ascii").rstrip("=")


@dataclass(frozen=True, slots=True)
class SignedQuery:
    """The query of a signed file URL, checked for form."""

    path: str
    user: str
    signature: str
    expires_at: int | None

    def matches(self, operation: Operation, token: str) -> bool:
        """Whether the signature was made with this token (constant time); says nothing about its expiry."""
        expected = sign(self.path, operation, self.user, token, self.expires_at)
        return hmac.compare_digest(expected.encode(), self.signature.encode("utf-8", "surrogatepass"))

    def is_expired(self, now_s: float) -> bool:
        """Whether the URL is dead at this Unix time."""
        return self.expires_at is not None and now_s > self.expires_at


def read_query(pairs: Iterable[tuple[str, str]]) -> SignedQuery:
    """Pick the parameters of a signed URL out of a decoded query.

    Raises:
        InvalidArgument: A parameter is given twice.
        Unauthenticated: No signature, a user name that is not one, or an expiry that is not a Unix time.
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in _PARAMETERS:
            if name in found:
                raise InvalidArgument(f"query parameter given twice: {name}")
            found[name] = value
    signature, user, expiry = (
        found.get("signature"),
        found.get("username", ""),
        found.get("signature_expiration"),
    )
    if not signature:
        raise Unauthenticated("missing signature")
    if user and not _USER.match(user):
        raise Unauthenticated("invalid username in a signed url")
    if expiry is not None and not _EXPIRY.match(expiry):
        raise Unauthenticated("invalid signature expiration")
    return SignedQuery(found.get("path", ""), user, signature, None if expiry is None else int(expiry))


def verify(query: SignedQuery, operation: Operation, token: str, now_s: float) -> None:
    """Let a signed request pass or raise.

    Raises:
        Unauthenticated: Wrong signature, or expired.
    """
    if not query.matches(operation, token):
        raise Unauthenticated("invalid signature")
    if query.is_expired(now_s):
        raise Unauthenticated("signature is already expired")
