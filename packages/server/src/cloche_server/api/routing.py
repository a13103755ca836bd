"""From a request to a typed call and back: bodies and queries become structs, errors become JSON.

Paths are matched before they are decoded, since a template name in a path may hold an encoded slash.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

import anyio
import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cloche_server.api import problems
from cloche_server.api.auth import Authenticator, Caller
from cloche_server.api.rate_limits import RateLimits
from cloche_server.api.shapes import encode
from cloche_wire.errors import Canceled, ClocheError, InvalidArgument, TooLarge

MAX_BODY_BYTES = 1 << 20
BODY_TIMEOUT_S = 30.0

log = structlog.get_logger()
T = TypeVar("T")


class Call(NamedTuple):
    """One authenticated request, matched to its route."""

    request: Request
    caller: Caller
    params: dict[str, str]
    body: bytes


Handler = Callable[[Call], Awaitable[Response]]


class Route(NamedTuple):
    """One served path and method."""

    method: str
    pattern: str
    """Segments between slashes; `{name}` takes any one segment."""
    handler: Handler
    public: bool = False
    """Served without a key."""
    admin: bool = False
    """Served to the operator alone."""
    retry_safe: bool = True
    """Whether a client may repeat the request after a 429, 503 or 504."""
    creates: bool = False
    """Counts against the key's budget of creates."""


def with_body(body_type: type[T], handler: Callable[[Call, T], Awaitable[Response]]) -> Handler:
    """Return a handler that gets the body as a struct; an absent body is an empty object."""
    decoder = msgspec.json.Decoder(body_type)

    async def decode_and_handle(call: Call) -> Response:
        try:
            value = decoder.decode(call.body or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"bad request body: {error}") from error
        except RecursionError as error:
            raise InvalidArgument("bad request body: nested too deeply") from error
        return await handler(call, value)

    return decode_and_handle


def with_query(query_type: type[T], handler: Callable[[Call, T], Awaitable[Response]]) -> Handler:
    """Return a handler that gets the query as a struct; repeated keys are joined."""

    async def decode_and_handle(call: Call) -> Response:
        joined: dict[str, str] = {}
        for key, value in call.request.query_params.multi_items():
            joined[key] = f"{joined[key]},{value}" if key in joined else value
        try:
            value = msgspec.convert(joined, query_type, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"bad query: {error}") from error
        return await handler(call, value)

    return decode_and_handle


def reply(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON answer."""
    return Response(encode(value), status, headers, media_type="application/json")


class Router:
    """The ASGI application behind the middleware."""

    def __init__(
        self, routes: Sequence[Route], authenticator: Authenticator, rate_limits: RateLimits
    ) -> None:
        """Serve these routes; of two that match, the first one wins."""
        self._routes = [(route, _compile(route.pattern)) for route in routes]
        self._authenticator = authenticator
        self._rate_limits = rate_limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; whatever goes wrong, the answer is JSON."""
        request = Request(scope, receive)
        route: Route | None = None
        try:
            route, params = self._match(request)
            response = await self._run(route, params, request)
        except ClocheError as error:
            response = problems.to_response(error, retry_safe=route is None or route.retry_safe)
        except ClientDisconnect:
            response = problems.to_response(Canceled("client went away"), retry_safe=False)
        except Exception:
            log.exception("api.request_failed", method=request.method, route=route and route.pattern)
            response = problems.internal()
        await response(scope, receive, send)

    async def _run(self, route: Route, params: dict[str, str], request: Request) -> Response:
        if route.public:
            return await route.handler(Call(request, Caller.nobody(), params, b""))
        if route.admin:
            caller = self._authenticator.authenticate_admin(request.headers)
        else:
            caller = await self._authenticator.authenticate(request.headers)
        self._rate_limits.take(caller.key_id, creates=route.creates)
        return await route.handler(Call(request, caller, params, await _read_body(request)))

    def _match(self, request: Request) -> tuple[Route, dict[str, str]]:
        path: bytes = request.scope["raw_path"].partition(b"?")[0]
        method = "GET" if request.method == "HEAD" else request.method
        allowed: list[str] = []
        for route, pattern in self._routes:
            if (match := pattern.fullmatch(path)) is None:
                continue
            if route.method == method:
                return route, {key: _decode(value) for key, value in match.groupdict().items()}
            allowed.append(route.method)
        if allowed:
            raise problems.MethodNotAllowed(sorted(set(allowed)))
        raise problems.RouteNotFound("no such path")


def _compile(pattern: str) -> re.Pattern[bytes]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern).encode())


def _decode(segment: bytes) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument("path is not UTF-8") from error
    if "\0" in text:
        raise InvalidArgument("path holds a NUL byte")
    return text


async def _read_body(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    with anyio.move_on_after(BODY_TIMEOUT_S) as scope:
        async for part in request.stream():
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise TooLarge(f"request body is larger than {MAX_BODY_BYTES} bytes")
            parts.append(part)
    if scope.cancelled_caught:
        raise InvalidArgument(f"request body did not arrive within {BODY_TIMEOUT_S:g} s")
    return b"".join(parts)
