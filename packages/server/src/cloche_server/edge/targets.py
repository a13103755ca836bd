"""What a request is meant for, read from its head alone (wire contract 1.2 and 3.6)."""

from __future__ import annotations

import posixpath
import re
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

from cloche_server.edge.refusal import Refusal
from cloche_wire import hostname

if TYPE_CHECKING:
    from cloche_server.edge.heads import RequestHead

DAEMON_PORT = 49983
INTERPRETER_PORT = 49999

_HOST = re.compile(rb"(?:[A-Za-z0-9._+-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_CONTROL_PATHS = {
    b"/init",
    b"/prepare",
    b"/ready",
    b"/quiesce",
    b"/relieve",
    b"/forward",
    b"/logs",
    b"/freeze",
    b"/unfreeze",
    b"/thaw",
    b"/pause",
    b"/resume",
    b"/snapshot",
    b"/upgrade",
}
"""Requests to the daemon that only the node may make."""
_VOLUME_CONTENT = b"/volumecontent/"
_INTERPRETER_PATHS = re.compile(rb"/(?:execute|contexts(?:/[^/]+){0,2})\Z")
_CONNECT_PATH = re.compile(rb"/(?:v2/)?sandboxes/[a-z0-9]+/connect\Z")
_DAEMON_PATHS = re.compile(
    rb"/(?:health|metrics|envs|files(?:/compose)?|(?:process\.Process|filesystem\.Filesystem)/\w+)\Z"
)


class Kind(Enum):
    """Who answers."""

    CONTROL_PLANE = auto()
    VOLUME_CONTENT = auto()
    """The process that serves files of volumes."""
    SANDBOX = auto()
    """A port of a named sandbox."""
    SIGNED_URL = auto()
    """The daemon of the sandbox whose token signed the URL."""
    TOKEN_ONLY = auto()
    """A service of the sandbox that the access token belongs to (clients before the routing headers)."""
    PREFLIGHT = auto()
    """The edge: a browser asks, on the shared address, whether it may call a sandbox service."""


class Target(NamedTuple):
    """Who answers, and where."""

    kind: Kind
    sandbox_id: str = ""
    port: int = 0


def read_target(request: RequestHead, domain: str) -> Target:
    """Decide where a request goes.

    Args:
        request: Its head.
        domain: The public domain, perhaps with a port: below it every label with a hyphen has to be a sandbox
            port.

    Raises:
        Refusal: 400, the host or the routing headers are invalid or name two different ports.
    """
    by_headers = _from_headers(request)
    by_host = _from_host(request, domain)
    if by_headers and by_host and by_headers != by_host:
        raise Refusal(400, "the host and the routing headers name different sandboxes or ports")
    if by_host is None and _is_api_call(request, by_headers):
        return Target(Kind.CONTROL_PLANE)
    if found := by_headers or by_host:
        return Target(Kind.SANDBOX, found.sandbox_id, found.port)
    return _without_name(request)


def refuse_control_path(request: RequestHead) -> None:
    """Keep the node's own requests to the daemon out of reach.

    The path is compared as a lenient server might read it: decoded, without doubled slashes and dot segments.

    Raises:
        Refusal: 404.
    """
    path = posixpath.normpath(b"/" + unquote_to_bytes(request.path).lstrip(b"/")).lower()
    if path in _CONTROL_PATHS or path.startswith((b"/forward/", b"/answers/")):
        raise Refusal(404, "this path is reserved for the control plane")


def _from_headers(request: RequestHead) -> hostname.PortAddress | None:
    given_id, given_port = request.get(b"e2b-sandbox-id"), request.get(b"e2b-sandbox-port")
    if given_id is None and given_port is None:
        return None
    sandbox_id = hostname.parse_sandbox_id((given_id or b"").decode("latin-1"))
    port = hostname.parse_port((given_port or b"").decode("latin-1"))
    if sandbox_id is None:
        raise Refusal(400, "header E2b-Sandbox-Id is missing or invalid")
    if port is None:
        raise Refusal(400, "header E2b-Sandbox-Port is missing or invalid")
    return hostname.PortAddress(port, sandbox_id)


def _is_api_call(request: RequestHead, named: hostname.PortAddress | None) -> bool:
    """Tell whether a request that names a daemon is for the API nevertheless.

    PyPI e2b 2.20 sends the routing headers beside its key when it connects; the daemon has no such path, and
    the key is not for it.
    """
    is_daemon = named is not None and named.port == DAEMON_PORT
    return is_daemon and b"x-api-key" in request.values and _CONNECT_PATH.match(request.path) is not None


def _from_host(request: RequestHead, domain: str) -> hostname.PortAddress | None:
    host = request.get(b"host")
    if not host:
        return None
    if not _HOST.match(host):
        raise Refusal(400, "invalid host")
    name = host.decode("ascii").lower()
    address = hostname.parse_host(name)
    label, _, parent = name.partition(".")
    if address is None and (
        (_is_below(parent, domain) and "-" in label) or re.match(r"[0-9]+-[a-z0-9]+\Z", label)
    ):
        raise Refusal(400, "invalid host: it names no port of a sandbox")
    return address


def _is_below(parent: str, domain: str) -> bool:
    return parent.partition(":")[0] == domain.partition(":")[0].lower()


def _without_name(request: RequestHead) -> Target:
    path = request.path
    is_service = _DAEMON_PATHS.match(path) or _INTERPRETER_PATHS.match(path)
    if request.method == b"OPTIONS" and is_service and b"access-control-request-method" in request.values:
        return Target(Kind.PREFLIGHT)
    if b"x-access-token" in request.values and is_service:
        return Target(
            Kind.TOKEN_ONLY, port=INTERPRETER_PORT if _INTERPRETER_PATHS.match(path) else DAEMON_PORT
        )
    if path == b"/files" and request.method in {b"GET", b"HEAD", b"POST"} and b"signature=" in request.target:
        return Target(Kind.SIGNED_URL, port=DAEMON_PORT)
    if path.startswith(_VOLUME_CONTENT):
        return Target(Kind.VOLUME_CONTENT)
    return Target(Kind.CONTROL_PLANE)
