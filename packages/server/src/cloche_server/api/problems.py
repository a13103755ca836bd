"""Every error as the wire shows it: a status and `{"code", "message"}` with the same number."""

from starlette.responses import Response

from cloche_server.api.shapes import Problem, encode
from cloche_wire.errors import ClocheError, Internal, NotFound, ResourceExhausted, Unimplemented

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


class RateLimited(ResourceExhausted):
    """The key asks faster than it may; the request was not begun, so that repeating it is always safe."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        """Say after how many seconds the next one will be let through, at least 1."""
        super().__init__(message, hint=f"come back in {retry_after_s} s")
        self.retry_after_s = retry_after_s


def problem_of(error: ClocheError) -> Problem:
    """Return the body for an error; its hint follows the message in brackets."""
    text = f"{error.message} ({error.hint})" if error.hint else error.message
    return Problem(error.http_status, text)


def to_response(error: ClocheError, *, retry_safe: bool) -> Response:
    """Return the answer for an error.

    Args:
        error: What was raised.
        retry_safe: False forbids clients to repeat the request by themselves: it might do the act twice.
            `RateLimited` is safe on every route.
    """
    headers: dict[str, str] = {}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, RateLimited):
        # The JavaScript clients repeat nothing else than a 429 with whole seconds.
        headers |= {"Retry-After": str(error.retry_after_s), "Should-Retry": "true"}
    elif error.http_status in RETRIED_BY_CLIENTS and not retry_safe:
        headers["Should-Retry"] = "false"
    return Response(encode(problem_of(error)), error.http_status, headers, media_type="application/json")


def internal() -> Response:
    """Return the answer for what should not happen; what it was stands in the log only."""
    return to_response(Internal("internal error"), retry_safe=False)
