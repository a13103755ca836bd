"""Every error as the wire shows it: a status and `{"code", "message"}` with the same number."""

from starlette.responses import Response

from cloche_server.api.shapes import Problem, encode
from cloche_wire.errors import ClocheError, Internal, NotFound, Unimplemented

RETRIED_BY_CLIENTS = frozenset({429, 502, 503, 504})
"""Statuses that the official Python client repeats by itself, a POST too."""


class RouteNotFound(NotFound):
    """No such path."""


class MethodNotAllowed(Unimplemented):
    """The path is served, but not by this method."""

    http_status = 405

    def __init__(self, allowed: list[str]) -> None:
        """Name the methods that are served."""
        super().__init__("method not allowed", hint=f"allowed: {', '.join(allowed)}")
        self.allowed = allowed


def to_response(error: ClocheError, *, retry_safe: bool) -> Response:
    """Return the answer for an error.

    Args:
        error: What was raised; its hint follows the message in brackets.
        retry_safe: False forbids clients to repeat the request by themselves: it might do the act twice.
    """
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    headers: dict[str, str] = {}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if error.http_status in RETRIED_BY_CLIENTS and not retry_safe:
        headers["Should-Retry"] = "false"
    body = encode(Problem(error.http_status, text))
    return Response(body, error.http_status, headers, media_type="application/json")


def internal() -> Response:
    """Return the answer for what should not happen; what it was stands in the log only."""
    return to_response(Internal("internal error"), retry_safe=False)
