"""`GET /forward/PORT`: a way to services that listen on the sandbox's loopback addresses only.

For the node, where it cannot enter the sandbox's network: it reaches this agent, and only that.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from cloche_agent.http import Response
from cloche_agent.tunnel import Tunnel
from cloche_wire.errors import InvalidArgument, PortClosed

if TYPE_CHECKING:
    from cloche_agent.http import Request

PREFIX = "/forward/"
_LARGEST_PORT = 65535
_CONNECT_DEADLINE_S = 5.0
"""Of each address; it is there at once, unless the service has left many others unaccepted."""
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


async def handle_forward(request: Request) -> Response:
    """Connect to the service and switch to the protocol `tcp`: its bytes, both ways.

    Raises:
        InvalidArgument: No port, or the request does not ask for that protocol.
        PortClosed: Nothing accepts connections there.
    """
    text = request.path.removeprefix(PREFIX)
    port = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(_LARGEST_PORT)) else 0
    if not 0 < port <= _LARGEST_PORT:
        raise InvalidArgument(f"not a port: {text[:32]}")
    if (request.headers.get("upgrade") or "").lower() != "tcp":
        raise InvalidArgument("upgrade to tcp is not asked for")
    for family, host in _LOOPBACK:
        if (service := await _connected(family, host, port)) is not None:
            return Response(101, [("connection", "upgrade"), ("upgrade", "tcp")], tunnel=Tunnel(service))
    raise PortClosed(f"nothing listens on this port: {port}")


async def _connected(family: socket.AddressFamily, host: str, port: int) -> socket.socket | None:
    service: socket.socket | None = None
    try:
        # The protocol is named so that asyncio turns Nagle's algorithm off.
        service = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
        async with asyncio.timeout(_CONNECT_DEADLINE_S):
            await asyncio.get_running_loop().sock_connect(service, (host, port))
    except BaseException as error:
        if service is not None:
            service.close()
        if isinstance(error, OSError):  # refused, too late, or no such kind of address here
            return None
        raise
    return service
