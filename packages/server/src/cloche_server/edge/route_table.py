"""What the edge knows of the sandboxes of this node: the node's route feed, kept while it is needed.

The feed may break at any time (the node is restarted while sandboxes live on). Until it is back the last
known routes stay valid, because the agents' sockets go on answering without the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import msgspec
import structlog

from cloche_server import link
from cloche_server.edge.refusal import Refusal, sandbox_not_found
from cloche_server.node.messages import Route, RouteGone
from cloche_wire.errors import ClocheError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

FIRST_TABLE_S = 5.0
"""How long the first requests after a start wait for the node's first list."""
LATE_ROUTE_S = 1.0
"""How long an unknown sandbox may still turn up: a create may be answered before its route event has been
read here."""
MAX_WAITING = 512
"""Requests that wait for unknown sandboxes at once; more are told "not found" without a wait."""
MAX_STREAMS = 1000
"""Requests to one sandbox at once."""
_RETRY_FIRST_S = 0.02
_RETRY_MAX_S = 1.0
_REMEMBERED_GONE = 4096

log = structlog.get_logger()


@dataclass(eq=False)
class Attachment:
    """A request that hangs on a sandbox."""

    cut: Callable[[], None]
    """Called when the sandbox goes."""
    on_pause: Callable[[], None]
    """Called when it is paused: `cut`, but where nothing has reached it yet."""
    on_freeze: Callable[[Route], None] | None = None
    """Called when it comes to stand still."""


class RouteTable:
    """Routes by sandbox and by token, and the streams that are open through each."""

    def __init__(self, socket: Path) -> None:
        """Start empty; `follow` fills it.

        Args:
            socket: The node's edge socket.
        """
        self._socket = socket
        self._routes: dict[str, Route] = {}
        self._by_token: dict[bytes, str] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._streams: dict[str, set[Attachment]] = {}
        self._quiet_since: dict[str, float] = {}
        """By CLOCK_MONOTONIC: since when nothing is open to it, if that is so."""
        self._loaded = asyncio.Event()
        self._changed = asyncio.Event()
        self._waiting = 0
        self._is_fed = False
        """Whether the node's feed is being read now; without it an unknown sandbox may yet be a new one."""

    async def follow(self) -> NoReturn:
        """Keep the table up to date until cancelled, over any number of restarts of the node."""
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                async for item in link.subscribe(self._socket, "routes", list[Route]):
                    pause_s = _RETRY_FIRST_S
                    if isinstance(item, list):
                        self.replace(item)
                    else:
                        self._apply(*item)
            except (ClocheError, OSError, msgspec.DecodeError) as error:
                log.debug("edge.routes_failed", error=str(error))
            self._is_fed = False
            if self._loaded.is_set() and pause_s == _RETRY_FIRST_S:
                log.warning("edge.routes_lost", known=len(self._routes))
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _RETRY_MAX_S)

    # --- changes --------------------------------------------------------------------------------------------

    def replace(self, routes: list[Route]) -> None:
        """Take the node's whole list; what is no longer in it is gone."""
        for sandbox_id in self._routes.keys() - {route.sandbox_id for route in routes}:
            self.remove(sandbox_id)
        for route in routes:
            self.add(route)
        self._is_fed = True
        self._loaded.set()
        self._notify()
        log.info("edge.routes_loaded", known=len(routes))

    def add(self, route: Route) -> None:
        """Take a new route, or a newer one of a known sandbox; one that is paused now has no streams left."""
        known = self._routes.get(route.sandbox_id)
        self._forget_token(route.sandbox_id)
        self._gone.pop(route.sandbox_id, None)
        self._routes[route.sandbox_id] = route
        self._by_token[_digest(route.access_token)] = route.sandbox_id
        was_there = known is not None and not known.is_paused
        if known is None or (known.sleeps and not route.sleeps):
            self._quiet_since[route.sandbox_id] = time.monotonic()
        for attachment in tuple(self._streams.get(route.sandbox_id, ())):
            if route.is_paused and was_there:
                # Of a connection by TCP nobody else would tell: its peer is gone without a word.
                attachment.on_pause()
            elif route.is_frozen and attachment.on_freeze is not None:
                attachment.on_freeze(route)
        self._notify()

    def remove(self, sandbox_id: str, *, for_good: bool = True) -> None:
        """Forget a route and cut every stream that is open through it.

        Args:
            sandbox_id: Whose.
            for_good: Whether it cannot come back, so that nobody has to wait for that.
        """
        self._forget_token(sandbox_id)
        self._routes.pop(sandbox_id, None)
        self._quiet_since.pop(sandbox_id, None)
        if for_good:
            self._gone[sandbox_id] = None
        if len(self._gone) > _REMEMBERED_GONE:
            self._gone.popitem(last=False)
        for attachment in tuple(self._streams.get(sandbox_id, ())):
            attachment.cut()
        self._notify()

    # --- questions ------------------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """Return every live route."""
        return list(self._routes.values())

    def get(self, sandbox_id: str) -> Route | None:
        """Return the route that the sandbox has now."""
        return self._routes.get(sandbox_id)

    def is_live(self, sandbox_id: str) -> bool:
        """Whether the sandbox has a route now and is not paused."""
        route = self._routes.get(sandbox_id)
        return route is not None and not route.is_paused

    def quiet_s(self, sandbox_id: str) -> float:
        """For how long nothing has been open to a sandbox that has a route; 0 where something is."""
        if sandbox_id in self._streams:
            return 0.0
        return time.monotonic() - self._quiet_since[sandbox_id]

    async def find(self, sandbox_id: str) -> Route:
        """Return the route of a sandbox; an unknown one is given a moment to turn up.

        Raises:
            Refusal: 502, there is no such sandbox; 503, the node has not told its routes yet.
        """
        await self._wait_until_loaded()
        route = self._routes.get(sandbox_id)
        if route is None and sandbox_id not in self._gone:
            await self._await_late(lambda: sandbox_id in self._routes)
            route = self._routes.get(sandbox_id)
        if route is None:
            raise sandbox_not_found(sandbox_id)
        return route

    async def find_by_token(self, token: str) -> Route | None:
        """Return the route of the sandbox with this access token, which is unique; None if there is none.

        Tokens are looked up by their digest, so that the time taken tells nothing about them.

        Raises:
            Refusal: 503, the node has not told its routes yet.
        """
        await self._wait_until_loaded()
        digest = _digest(token)
        if digest not in self._by_token:
            await self._await_late(lambda: digest in self._by_token)
        sandbox_id = self._by_token.get(digest)
        return None if sandbox_id is None else self._routes.get(sandbox_id)

    async def _await_late(self, claim: Callable[[], bool]) -> None:
        """Give a route a moment to turn up; while the feed is down, the moment begins when it is back.

        A restarted node makes sandboxes at once. They must not be told gone before its list has been read.
        """
        if not self._is_fed:
            await self.wait_for(lambda: self._is_fed or claim(), FIRST_TABLE_S)
        await self.wait_for(claim, LATE_ROUTE_S)

    async def wait_for(self, claim: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a claim about the table holds; False if not in time, or if too many wait already."""
        if claim() or self._waiting >= MAX_WAITING:
            return claim()
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                while not claim():
                    await self._changed.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

    @contextlib.contextmanager
    def attached(self, sandbox_id: str, cut: Callable[[], None]) -> Generator[Attachment, None, None]:
        """Have `cut` called if the sandbox goes or is paused while the block runs.

        Raises:
            Refusal: 502, it is gone already; 429, too many requests to it are open.
        """
        if sandbox_id not in self._routes:
            raise sandbox_not_found(sandbox_id)
        streams = self._streams.setdefault(sandbox_id, set())
        if len(streams) >= MAX_STREAMS:
            message = "Too many connections to the sandbox"
            raise Refusal(429, message, sandbox_id, connection_limit=MAX_STREAMS)
        attachment = Attachment(cut, cut)
        streams.add(attachment)
        try:
            yield attachment
        finally:
            streams.discard(attachment)
            if not streams and self._streams.get(sandbox_id) is streams:
                del self._streams[sandbox_id]
                if sandbox_id in self._routes:
                    self._quiet_since[sandbox_id] = time.monotonic()

    # --- inside ---------------------------------------------------------------------------------------------

    async def _wait_until_loaded(self) -> None:
        if self._loaded.is_set():
            return
        try:
            async with asyncio.timeout(FIRST_TABLE_S):
                await self._loaded.wait()
        except TimeoutError:
            raise Refusal(503, "the node has not answered yet", fields=((b"Retry-After", b"1"),)) from None

    def _apply(self, name: str, data: msgspec.Raw) -> None:
        match name:
            case "route":
                self.add(msgspec.json.decode(data, type=Route))
            case "gone":
                gone = msgspec.json.decode(data, type=RouteGone)
                self.remove(gone.sandbox_id, for_good=not gone.is_paused)
                log.info("edge.sandbox_gone", sandbox_id=gone.sandbox_id, is_paused=gone.is_paused)
            case _:
                log.warning("edge.unknown_event", name=name)

    def _forget_token(self, sandbox_id: str) -> None:
        old = self._routes.get(sandbox_id)
        if old is not None:
            self._by_token.pop(_digest(old.access_token), None)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
