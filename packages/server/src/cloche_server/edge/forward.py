"""From a request's head to the one service that answers it: the edge's whole decision, in reading order."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cloche_server.edge import headers
from cloche_server.edge.answers import preflight
from cloche_server.edge.lasting import LastingStream
from cloche_server.edge.refusal import TOKEN_MISSING, TOKEN_WRONG, Refusal, sandbox_not_found
from cloche_server.edge.relay import Exchange, Outcome
from cloche_server.edge.targets import (
    DAEMON_PORT,
    INTERPRETER_PORT,
    Kind,
    Target,
    read_target,
    refuse_control_path,
)
from cloche_server.edge.upstream import connect_agent, connect_port, connect_service

if TYPE_CHECKING:
    from pathlib import Path

    from cloche_server.config import Config
    from cloche_server.edge.headers import Sender
    from cloche_server.edge.heads import RequestHead
    from cloche_server.edge.route_table import Attachment, RouteTable
    from cloche_server.edge.signed_urls import SignedUrls
    from cloche_server.edge.streams import Stream
    from cloche_server.edge.waking import Waker
    from cloche_server.node.messages import Route

_ENDING_S = 0.5
"""How long a connection that broke without an answer may be explained by a sandbox that is just ending."""
MAX_WAKES = 3
"""How often one request has a sandbox resumed that is paused before it is reached."""
_REPEATABLE = {b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"}


@dataclass(frozen=True, slots=True)
class Gateway:
    """What every connection shares."""

    config: Config
    table: RouteTable
    signed_urls: SignedUrls
    waker: Waker


async def forward(gateway: Gateway, client: Stream, request: RequestHead, sender: Sender) -> bool:
    """Have one request answered; return whether the client's connection may carry another one.

    Leaves: the answer sent in full; or the client's connection closed before the end of the answer, if the
    service behind it ended before.

    Raises:
        Refusal: The edge has to answer by itself; nothing has been sent yet.
    """
    target = read_target(request, gateway.config.public_domain)
    match target.kind:
        case Kind.PREFLIGHT:
            client.write(preflight(request))
            return not request.closes and not request.has_body
        case Kind.CONTROL_PLANE:
            return await _to_service(gateway.config.api_socket, client, request, sender)
        case Kind.VOLUME_CONTENT:
            return await _to_service(gateway.config.content_socket, client, request, sender)
        case Kind.SANDBOX:
            route = await gateway.table.find(target.sandbox_id)
        case Kind.SIGNED_URL:
            route = await gateway.signed_urls.find(request, sender.address)
        case Kind.TOKEN_ONLY:
            route = await _owner_of_token(gateway.table, request)
    return await _to_sandbox(gateway, client, request, sender, (route, target))


async def _owner_of_token(table: RouteTable, request: RequestHead) -> Route:
    token = request.get(b"x-access-token") or b""
    route = await table.find_by_token(token.decode("latin-1"))
    if route is None:
        if b"signature=" in request.target:
            raise Refusal(401, "invalid access token")  # a wrong token beats a right signature
        raise sandbox_not_found("")
    return route


async def _to_service(path: Path, client: Stream, request: RequestHead, sender: Sender) -> bool:
    upstream = await connect_service(path)
    upgrade = _upgrade(request, {b"websocket"})
    exchange = Exchange(client, request)
    outcome = await exchange.relay(
        upstream, headers.to_service(request, sender), headers.from_service, upgrade
    )
    if outcome is Outcome.UNANSWERED:
        # It may have been done all the same. Clients repeat a 502 unless told not to (wire, fact 11).
        repeatable = request.method in _REPEATABLE or b"idempotency-key" in request.values
        fields = () if repeatable else ((b"Should-Retry", b"false"),)
        refusal = exchange.refusal or Refusal(
            502, "the control plane ended before it answered", fields=fields
        )
        raise _after_body(refusal, request)
    return outcome is Outcome.REUSE


async def _to_sandbox(
    gateway: Gateway, client: Stream, request: RequestHead, sender: Sender, way: tuple[Route, Target]
) -> bool:
    route, target = way
    _check_traffic_token(route, target.port, request)
    is_agent = target.port in {DAEMON_PORT, INTERPRETER_PORT}
    if target.port == DAEMON_PORT:
        refuse_control_path(request)
    exchange = Exchange(client, request, is_probe=is_agent and _is_probe(request))
    with gateway.table.attached(route.sandbox_id, exchange.cut) as attachment:
        attachment.on_freeze = partial(_needs, gateway.waker, exchange)
        upstream = await _reach(gateway, attachment, route, target.port)
        if is_agent:
            fields = headers.to_agent(request, sender)
        else:
            fields = headers.to_user_port(request, sender, _masked_host(route, target.port))
        upgrade = _upgrade(request, {b"websocket"} if is_agent else None)
        if isinstance(upstream, LastingStream) and upgrade is None:
            fields = [*fields, upstream.last_with(exchange)]
        outcome = await exchange.relay(upstream, fields, headers.from_sandbox, upgrade)
    if outcome is Outcome.UNANSWERED:
        await _explain_silence(gateway.table, exchange, route.sandbox_id, target.port)
    return outcome is Outcome.REUSE


async def _reach(gateway: Gateway, attachment: Attachment, route: Route, port: int) -> Stream:
    """Connect to a port of a sandbox that may be paused, or may be paused while we try.

    Nothing of the request has been sent yet: it waits until the sandbox runs again, or is known to be gone.
    """
    cut = attachment.cut
    for _ in range(1 + MAX_WAKES):
        attachment.cut = attachment.on_pause = _stay
        if route.sleeps:
            route = await gateway.waker.wake(route.sandbox_id)
        attachment.cut = cut
        try:
            async with asyncio.timeout(None) as attempt:
                attachment.on_pause = partial(_give_up, attachment, attempt)
                stream = await _connect(gateway, route, port)
        except (Refusal, TimeoutError):
            now = gateway.table.get(route.sandbox_id)
            if now is None or not now.is_paused:
                raise
            route = now
            continue
        attachment.on_pause = cut
        return stream
    raise Refusal(503, "The sandbox is paused again and again", route.sandbox_id, port)


def _needs(waker: Waker, exchange: Exchange, route: Route) -> None:
    """Have a sandbox go on that came to stand still under a request, or as soon as its client sends more.

    One that was frozen by its owner's wish is left to stand under answers that have begun.
    """
    if route.is_idle or not exchange.is_answered:
        waker.wake_soon(route.sandbox_id)
    exchange.watch_client(partial(waker.wake_soon, route.sandbox_id))


def _stay() -> None:
    """Not cut off: who waits gets an answer."""


def _give_up(attachment: Attachment, attempt: asyncio.Timeout) -> None:
    """End an attempt to connect to what has just been paused; nothing would answer it."""
    attachment.on_pause = _stay
    attempt.reschedule(asyncio.get_running_loop().time())


async def _connect(gateway: Gateway, route: Route, port: int) -> Stream:
    if port not in {DAEMON_PORT, INTERPRETER_PORT}:
        by_tls = port in route.https_ports
        return await connect_port(gateway.config.edge_socket, route.sandbox_id, port, by_tls=by_tls)
    address = route.agent_address if port == DAEMON_PORT else route.interpreter_address
    return await connect_agent(address, route, gateway.table)


async def _explain_silence(table: RouteTable, exchange: Exchange, sandbox_id: str, port: int) -> None:
    """Say why a service gave no answer, or cut the connection.

    A request that was under way when its sandbox ended is cut, never answered: clients take a cut, followed
    by a "not found" when they ask again, for "killed while the request was in progress" (wire contract 3.6).
    An agent that ends a request without an answer means the same.
    """
    if exchange.client.is_lost or (exchange.client.at_eof and not exchange.is_probe):
        return
    if exchange.refusal is not None:
        exchange.refusal.sandbox_id, exchange.refusal.port = sandbox_id, port
        raise _after_body(exchange.refusal, exchange.request)
    is_agent = port in {DAEMON_PORT, INTERPRETER_PORT}
    if is_agent and not exchange.is_probe:
        exchange.client.reset()
        return
    is_gone = await table.wait_for(lambda: not table.is_live(sandbox_id), _ENDING_S)
    if exchange.is_probe and (is_gone or exchange.is_cut):
        raise sandbox_not_found(sandbox_id)
    if is_gone or is_agent:
        exchange.client.reset()
        return
    refusal = Refusal(502, "The service ended the connection without an answer", sandbox_id, port)
    raise _after_body(refusal, exchange.request)


def _after_body(refusal: Refusal, request: RequestHead) -> Refusal:
    """Have the connection closed if the request had a body: it may have been read, and only once."""
    refusal.closes = refusal.closes or request.has_body
    return refusal


def _check_traffic_token(route: Route, port: int, request: RequestHead) -> None:
    if route.traffic_token is None or port == DAEMON_PORT:
        return
    given = request.get(b"e2b-traffic-access-token")
    if given is None:
        raise Refusal(403, TOKEN_MISSING, route.sandbox_id)
    if not hmac.compare_digest(given, route.traffic_token.encode()):
        raise Refusal(403, TOKEN_WRONG, route.sandbox_id)


def _upgrade(request: RequestHead, allowed: set[bytes] | None) -> bytes | None:
    """Return the protocol the service may switch to; never HTTP/2, whose requests would pass unchecked."""
    protocol = request.upgrade
    if protocol is None or b"h2" in protocol or (allowed is not None and protocol not in allowed):
        return None
    return protocol


def _masked_host(route: Route, port: int) -> bytes | None:
    return (
        None
        if route.mask_request_host is None
        else route.mask_request_host.replace("${PORT}", str(port)).encode()
    )


def _is_probe(request: RequestHead) -> bool:
    return request.path == b"/health" and request.method in {b"GET", b"HEAD"}
