"""Paths that clients know and this version does not serve: 501, since 404 would blame the sandbox."""

from starlette.responses import Response

from cloche_server.api.routing import Call, Route
from cloche_wire.errors import Unimplemented

_PATHS = (
    ("POST", "/v2/templates"),
    ("POST", "/templates"),
    ("GET", "/secrets"),
    ("POST", "/secrets"),
    ("GET", "/secrets/{id}"),
    ("POST", "/secrets/{id}"),
    ("DELETE", "/secrets/{id}"),
)


def unserved_routes() -> list[Route]:
    """Return a route for each of them that answers 501."""
    return [Route(method, pattern, _refuse) for method, pattern in _PATHS]


async def _refuse(call: Call) -> Response:
    raise Unimplemented(f"not served by this version: {call.request.method} {call.request.url.path}")
