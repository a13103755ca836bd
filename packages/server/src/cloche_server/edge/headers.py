"""Which headers cross the edge, in which direction, for whom."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, NamedTuple

from cloche_server.edge.heads import split_tokens

if TYPE_CHECKING:
    from cloche_server.edge.heads import AnswerHead, Fields, RequestHead

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade content-length expect".split()
)
"""RFC 9110 7.6.1, and what the edge writes itself: the framing of the body and the answer to `Expect`."""
_FORWARDED = frozenset(
    (b"host", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-real-ip", b"forwarded")
)
_ROUTING = frozenset(
    (b"e2b-sandbox-id", b"e2b-sandbox-port", b"e2b-traffic-access-token", b"x-api-key", b"cloche-answer")
)
_CREDENTIALS = frozenset((b"x-access-token",))
_PLATFORM_ANSWERS = frozenset(
    (b"should-retry", b"x-next-token", b"x-e2b-trace-id", b"strict-transport-security", b"alt-svc")
)
"""Answers that make clients act on the server's behalf; a sandbox does not speak for the server."""
_COOKIE_DOMAIN = re.compile(rb";[ \t]*domain[ \t]*=[^;]*", re.IGNORECASE)
_DAEMON_USER = re.compile(rb"[a-z_][a-z0-9_-]{0,31}:\Z")
_NEVER_NAMED = frozenset((b"host", b"x-access-token", b"x-api-key", b"authorization", b"cookie"))


class Sender(NamedTuple):
    """Who sent a request, for X-Forwarded-*."""

    address: str
    scheme: bytes
    is_front: bool
    """Whether it is on this machine, so that a proxy in front of the edge may speak for the true sender."""


def to_service(request: RequestHead, sender: Sender) -> Fields:
    """Return the fields for the control plane."""
    return _request_fields(request, sender, _own_host(request), frozenset())


def to_agent(request: RequestHead, sender: Sender) -> Fields:
    """Return the fields for the daemon and the interpreter: they check the access token themselves."""
    return _request_fields(request, sender, _own_host(request), _ROUTING)


def to_user_port(request: RequestHead, sender: Sender, masked_host: bytes | None) -> Fields:
    """Return the fields for a service that users run: no key or token of the platform.

    Args:
        request: The client's request.
        sender: Who sent it.
        masked_host: What the service is to see as its host; None for the true one.
    """
    fields = _request_fields(request, sender, masked_host or _own_host(request), _ROUTING | _CREDENTIALS)
    return [field for field in fields if not _is_daemon_user(*field)]


def from_service(answer: AnswerHead) -> Fields:
    """Return the fields of an answer of the control plane, without framing."""
    drop = _HOP_BY_HOP | (split_tokens(answer.values.get(b"connection", [])) - _NEVER_NAMED)
    return [(name, value) for name, value in answer.fields if name.lower() not in drop]


def from_sandbox(answer: AnswerHead) -> Fields:
    """Return the fields of an answer out of a sandbox, without framing.

    Cookies stay with the host that set them: with a `Domain` one sandbox could set cookies for all others.
    """
    return [
        (name, _COOKIE_DOMAIN.sub(b"", value) if name.lower() == b"set-cookie" else value)
        for name, value in from_service(answer)
        if name.lower() not in _PLATFORM_ANSWERS
    ]


def _own_host(request: RequestHead) -> bytes:
    return request.get(b"host") or b"localhost"


def _request_fields(request: RequestHead, sender: Sender, host: bytes, strip: frozenset[bytes]) -> Fields:
    named = request.tokens(b"connection") - _NEVER_NAMED
    drop = _HOP_BY_HOP | _FORWARDED | strip | named
    fields: Fields = [(b"Host", host)]
    fields += [(name, value) for name, value in request.fields if name.lower() not in drop]
    if b"trailers" in request.tokens(b"te"):
        fields.append((b"TE", b"trailers"))
    source = sender.address.encode()
    earlier = request.values.get(b"x-forwarded-for", []) if sender.is_front else []
    fields.append((b"X-Forwarded-For", b", ".join([*earlier, source])))
    fields.append((b"X-Forwarded-Proto", _from_front(request, sender, b"x-forwarded-proto") or sender.scheme))
    fields.append(
        (b"X-Forwarded-Host", _from_front(request, sender, b"x-forwarded-host") or _own_host(request))
    )
    return fields


def _from_front(request: RequestHead, sender: Sender, name: bytes) -> bytes | None:
    values = request.values.get(name, [])
    return values[0] if sender.is_front and len(values) == 1 else None


def _is_daemon_user(name: bytes, value: bytes) -> bool:
    """Whether this is `Authorization: Basic base64("user:")`: clients name a user to the daemon so."""
    kind, _, encoded = value.partition(b" ")
    if name.lower() != b"authorization" or kind.lower() != b"basic":
        return False
    try:
        return _DAEMON_USER.match(base64.b64decode(encoded.strip(), validate=True)) is not None
    except binascii.Error:
        return False
