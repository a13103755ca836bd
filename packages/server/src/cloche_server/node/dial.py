"""Connections to a sandbox's ports, made inside its network namespace."""

from __future__ import annotations

import asyncio
import os
import socket

from cloche_server.isolation import syscalls
from cloche_server.node import agent_link, freezing, threads
from cloche_server.node.journal import Record
from cloche_server.node.machine import AGENT_PORT, Machine
from cloche_server.node.messages import Dial
from cloche_wire.errors import Conflict, Internal, InvalidArgument, PortClosed, SandboxNotFound

_TIMEOUT_S = 5.0


async def dial(machine: Machine, request: Dial) -> int:
    """Return a descriptor of a TCP socket connected to a port of the sandbox; the caller closes it.

    It is made inside the sandbox's namespace, so it needs no route, works with egress off, and reaches
    services that listen on the sandbox's 127.0.0.1 only.

    Raises:
        SandboxNotFound: It does not run.
        PortClosed: Nothing listens there.
        InvalidArgument: No such port.
    """
    try:
        live = machine.find(request.sandbox_id)
        await freezing.need(machine, live)
    except Conflict as error:
        raise SandboxNotFound(f"no such sandbox: {request.sandbox_id}") from error
    if not 1 <= request.port <= 65_535:
        raise InvalidArgument(f"no such port: {request.port}")
    if not machine.driver(live.record).capabilities().listeners:
        return await _dial_from_outside(machine, live.record, request.port)
    if live.network_namespace is None:
        raise SandboxNotFound(f"no such sandbox: {request.sandbox_id}")
    # SAFETY: a descriptor of our own. The sandbox may end while we wait for a thread, and the number of its
    # descriptor may then be that of another sandbox's namespace.
    namespace = os.dup(live.network_namespace)
    try:
        for address in ("127.0.0.1", str(machine.block.address(live.record.slot))):
            connection = await threads.in_thread(_socket_inside, namespace)
            if await _connects(connection, (address, request.port)):
                return connection.detach()
    finally:
        os.close(namespace)
    raise PortClosed(f"nothing listens on port {request.port}")


async def _dial_from_outside(machine: Machine, record: Record, port: int) -> int:
    """Connect from our end of the pair, where the sandbox has a network stack of its own behind the other.

    What listens on its 127.0.0.1 only is reached by way of its agent.
    """
    address = str(machine.block.address(record.slot))
    connection = _new_socket()
    if await _connects(connection, (address, port)):
        return connection.detach()
    connection = _new_socket()
    if not await _connects(connection, (address, AGENT_PORT)):
        raise PortClosed(f"nothing listens on port {port}")
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await agent_link.forward(connection, record.request.access_token, port)
    except BaseException as error:
        connection.close()
        if isinstance(error, (OSError, Internal)):
            raise PortClosed(f"nothing listens on port {port}") from error
        raise
    return connection.detach()


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


async def _connects(connection: socket.socket, target: tuple[str, int]) -> bool:
    """Whether the socket is connected now; it is closed otherwise."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(connection, target)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:  # TimeoutError is one
        connection.close()
        return False
    except BaseException:
        connection.close()
        raise
    return True


def _socket_inside(namespace: int) -> socket.socket:
    with syscalls.network_namespace(namespace):
        # SAFETY: a socket belongs to the namespace it was made in for ever (network_namespaces(7)); only it
        # leaves.
        return _new_socket()
