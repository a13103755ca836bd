"""Which sandbox a signed file URL belongs to: nothing in it says so, hence every live token is tried."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from cloche_server.edge.refusal import Refusal
from cloche_server.edge.route_table import LATE_ROUTE_S
from cloche_wire import signature
from cloche_wire.errors import InvalidArgument, Unauthenticated

if TYPE_CHECKING:
    from cloche_server.clock import Clock
    from cloche_server.edge.heads import RequestHead
    from cloche_server.edge.route_table import RouteTable
    from cloche_server.node.messages import Route

WRONG_PER_SECOND = 20.0
"""Wrong signatures that one source may send per second for long. Each costs one hash per live sandbox."""
WRONG_AT_ONCE = 50.0
_REMEMBERED_SOURCES = 4096


class Allowance:
    """A bucket of attempts per source, refilled with time. Right signatures give their attempt back."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, source: str) -> bool:
        """Take one attempt; False when none is left."""
        now = self._clock.boot_s()
        left, at = self._buckets.pop(source, (WRONG_AT_ONCE, now))
        left = min(WRONG_AT_ONCE, left + (now - at) * WRONG_PER_SECOND)
        allowed = left >= 1
        self._buckets[source] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _REMEMBERED_SOURCES:
            self._buckets.popitem(last=False)
        return allowed

    def give_back(self, source: str) -> None:
        """Return one attempt."""
        if source in self._buckets:
            left, at = self._buckets[source]
            self._buckets[source] = (left + 1, at)


class SignedUrls:
    """Finds sandboxes by signature."""

    def __init__(self, table: RouteTable, clock: Clock) -> None:
        self._table = table
        self._allowance = Allowance(clock)

    async def find(self, request: RequestHead, source: str) -> Route:
        """Return the route of the sandbox whose token signed the request. Its daemon checks the expiry.

        Args:
            request: `GET`, `HEAD` or `POST` of `/files`; the method says whether it reads or writes.
            source: Address of the sender, for the limit.

        Raises:
            Refusal: 400 or 401, it is malformed or fits no live sandbox; 429, too many wrong ones from this
                source.
        """
        query = _parse(request)
        if not self._allowance.take(source):
            raise Refusal(429, "too many wrong signatures", fields=((b"Retry-After", b"1"),))
        operation = "write" if request.method == b"POST" else "read"
        found: list[Route] = []

        def tries_every_token() -> bool:
            found.extend(
                route for route in self._table.routes() if query.matches(operation, route.access_token)
            )
            return bool(found)

        if not await self._table.wait_for(tries_every_token, LATE_ROUTE_S):
            raise Refusal(401, "invalid signature")
        self._allowance.give_back(source)
        return found[0]


def _parse(request: RequestHead) -> signature.SignedQuery:
    try:
        pairs = parse_qsl(
            request.target.partition(b"?")[2].decode("ascii"), keep_blank_values=True, max_num_fields=32
        )
        return signature.read_query(pairs)
    except InvalidArgument as error:
        raise Refusal(400, error.message) from error
    except Unauthenticated as error:
        raise Refusal(401, error.message) from error
    except ValueError as error:
        raise Refusal(400, "malformed query") from error
