"""Paths that clients know and this version does not serve: 501, since 404 would blame the sandbox."""

from starlette.responses import Response

from cloche_server.api.routing import Call, Route
from cloche_wire.errors import Unimplemented

_PATHS = (
    ("POST", "/v3/templates"),
    ("POST", "/v2/templates"),
    ("POST", "/templates"),
    ("PATCH", "/templates/{id}"),
    ("PATCH", "/v2/templates/{id}"),
    ("GET", "/templates/{id}/files/{hash}"),
    ("POST", "/v2/templates/{id}/builds/{build}"),
    ("GET", "/templates/{id}/builds/{build}/status"),
    ("GET", "/templates/{id}/builds/{build}/logs"),
    ("POST", "/templates/tags"),
    ("DELETE", "/templates/tags"),
    ("GET", "/templates/{id}/tags"),
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
