"""The egress's process: take the listening socket from the node, serve, cut what a new policy forbids."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog

from cloche_server import link, resolvers
from cloche_server.config import Config
from cloche_server.egress.flows import AskNode, Flows
from cloche_server.egress.proxy import Proxy
from cloche_server.node.messages import AskPolicy, NamePolicy, PolicyChanged
from cloche_wire.errors import ClocheError, Unavailable

PATIENCE_S = 5.0
"""How long a connection waits for a node that is started again; then it is refused."""
_RETRY_S = 0.1
_CALL_S = 5.0

log = structlog.get_logger()


def run(config: Config) -> None:
    """Serve until SIGTERM."""
    asyncio.run(_run(config))


async def _run(config: Config) -> None:
    flows = Flows(_asker(config.egress_socket))
    proxy = Proxy(flows, resolvers.upstream_resolvers(config.egress.resolvers), config.egress)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_serve(config.egress_socket, proxy))
            tasks.create_task(follow(config.egress_socket, flows))
            await stopping.wait()
            raise asyncio.CancelledError
    except asyncio.CancelledError:
        return


async def _serve(node: Path, proxy: Proxy) -> None:
    listener = await _listener(node)
    async with await asyncio.start_server(proxy.serve, sock=listener, limit=64 * 1024) as server:
        log.info("egress.ready")
        await server.serve_forever()


async def _listener(node: Path) -> socket.socket:
    """The socket that the node opens for us: it knows the address, and we need no right to bind it."""
    while True:
        try:
            _, descriptors = await link.call_for_descriptors(node, "listen", {}, timeout_s=_CALL_S)
            # SAFETY: the node made it for us and closed its own copy; it is owned here from now on.
            return socket.socket(fileno=descriptors[0])
        except (ClocheError, TimeoutError) as error:
            log.debug("egress.no_listener", error=str(error))
            await asyncio.sleep(_RETRY_S)


def _asker(node: Path) -> AskNode:
    async def ask(address: str) -> NamePolicy:
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                return await link.call(node, "policy", AskPolicy(address), NamePolicy, timeout_s=_CALL_S)
            except Unavailable:
                if asyncio.get_running_loop().time() > deadline_s:
                    raise
                await asyncio.sleep(_RETRY_S)

    return ask


async def follow(node: Path, flows: Flows) -> NoReturn:
    """Look again whenever a policy changes, and at all of them when the node is back."""
    while True:
        try:
            async for item in link.subscribe(node, "changes", msgspec.Raw):
                if isinstance(item, tuple):
                    await flows.look_again(msgspec.json.decode(item[1], type=PolicyChanged).address)
                else:
                    await flows.look_again()
        except (ClocheError, OSError, msgspec.DecodeError) as error:
            log.debug("egress.changes_lost", error=str(error))
        await asyncio.sleep(_RETRY_S)
