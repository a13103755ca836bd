"""What the edge itself answers: refusals, and requests for sandboxes that are gone."""

from __future__ import annotations

import html
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from cloche_server.edge.refusal import NOT_FOUND, PORT_CLOSED, Refusal

if TYPE_CHECKING:
    from cloche_server.edge.heads import RequestHead

_BROWSER = re.compile(rb"mozilla|chrome|safari|firefox|opera|msie", re.IGNORECASE)
_CLIENT_MARKS = (b"e2b-sandbox-id", b"x-access-token", b"connect-protocol-version")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto;padding:0 1rem;color:#223}}
h1{{font-size:1.3rem}}code{{background:#eef;padding:.1em .3em;border-radius:.2em}}</style></head>
<body><h1>{title}</h1><p>{advice}</p>{about}</body></html>
"""
_ADVICE = {
    NOT_FOUND: "It may have ended, reached its time-out, or never existed.",
    PORT_CLOSED: "Nothing inside it listens on this port yet. Start the service, then reload.",
}


def render(refusal: Refusal, request: RequestHead | None, *, closes: bool) -> bytes:
    """Serialize the answer: a page for people, JSON for programs, no body for HEAD.

    Args:
        refusal: The answer.
        request: What is answered; None when it could not be read.
        closes: Whether the connection ends after this answer.
    """
    wants_page = request is not None and _is_browser(request)
    kind, body = (
        (b"text/html; charset=utf-8", _page(refusal)) if wants_page else (b"application/json", _json(refusal))
    )
    fields = [
        (b"Content-Type", kind),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        (b"X-Content-Type-Options", b"nosniff"),
        (b"Access-Control-Allow-Origin", b"*"),
        *refusal.fields,
    ]
    if wants_page:
        fields.append((b"Content-Security-Policy", b"default-src 'none'; style-src 'unsafe-inline'"))
    if closes:
        fields.append((b"Connection", b"close"))
    head = b"HTTP/1.1 %d %b\r\n" % (refusal.status, _phrase(refusal.status))
    head += b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    return head if request is not None and request.method == b"HEAD" else head + body


def preflight(request: RequestHead) -> bytes:
    """Tell a browser that pages of any origin may call: credentials are headers here, never cookies."""
    asked = request.values.get(b"access-control-request-headers", [b"*"])[0]
    return (
        b"HTTP/1.1 204 No Content\r\n"
        b"Access-Control-Allow-Origin: *\r\n"
        b"Access-Control-Allow-Methods: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
        b"Access-Control-Allow-Headers: " + asked + b"\r\n"
        b"Access-Control-Max-Age: 7200\r\n"
        b"Vary: Access-Control-Request-Headers\r\n\r\n"
    )


def _is_browser(request: RequestHead) -> bool:
    if any(mark in request.values for mark in _CLIENT_MARKS):
        return False  # a client library that runs inside a page reads JSON
    return any(_BROWSER.search(agent) for agent in request.values.get(b"user-agent", []))


def _json(refusal: Refusal) -> bytes:
    content: dict[str, str | int] = {}
    if refusal.sandbox_id is not None:
        content["sandboxId"] = refusal.sandbox_id
    content["message"] = refusal.message
    if refusal.port is not None:
        content["port"] = refusal.port
    if refusal.connection_limit is not None:
        content["connectionLimit"] = refusal.connection_limit
    content["code"] = refusal.status
    return json.dumps(content).encode()


def _page(refusal: Refusal) -> bytes:
    about = ""
    if refusal.sandbox_id is not None:
        about = f"<p>Sandbox <code>{html.escape(refusal.sandbox_id)}</code>"
        about += f", port <code>{refusal.port}</code></p>" if refusal.port is not None else "</p>"
    advice = _ADVICE.get(refusal.message, f"The request was answered with status {refusal.status}.")
    return _PAGE.format(title=html.escape(refusal.message), advice=html.escape(advice), about=about).encode()


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Unknown"
