"""The process that serves the content of volumes.

It is confined before its first request (`cli.component`): root of a user namespace of its own, which is
nobody outside, in a folder that holds one socket of the node and nothing else, without a network. What it can
touch is the volume whose root the node hands it, for the time of one request.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
from pathlib import Path
from types import FrameType

import anyio
import structlog
import uvicorn

from cloche_server import link
from cloche_server.config import EDGE_UID, Config
from cloche_server.node.messages import OpenVolume
from cloche_server.volumes import changes
from cloche_server.volumes.app import create_app
from cloche_wire.errors import DeadlineExceeded, Unavailable

STOP_TIMEOUT_S = 5
OPEN_TIMEOUT_S = 20.0
"""For the node to mount a volume, which may have to read its journal first."""
ABSENCE_S = 5.0
"""How long a request waits for a node that is being started again."""
_RETRY_S = 0.05
_MAX_HEAD_BYTES = 32 * 1024
_LOADED_LATE = ("anyio._backends._asyncio", "concurrent.futures.thread", "encodings.idna", "linecache")
"""What others import at their first use, when no file of Python's can be read any more."""

log = structlog.get_logger()


class Service:
    """The server, all of its code loaded and what it needs of /proc open."""

    def __init__(self, node_socket: Path, listener: socket.socket) -> None:
        """Load everything; nothing is served yet.

        Args:
            node_socket: As the process will see it once it is confined.
            listener: Made by `listen`.
        """
        self._listener = listener
        self._node_socket = node_socket
        self._config = uvicorn.Config(
            create_app(self._open_root),
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        )
        self._config.load()
        for name in _LOADED_LATE:
            importlib.import_module(name)
        changes.own_descriptors()

    def run(self) -> None:
        """Serve until SIGTERM, then let requests end and return."""
        server = uvicorn.Server(self._config)

        def stop(_: int, __: FrameType | None) -> None:
            server.should_exit = True

        # At its end uvicorn raises the signal again for the handler it found: leave one that returns.
        signal.signal(signal.SIGTERM, stop)
        log.info("content.started")
        with self._listener:
            anyio.run(self._serve, server)
        log.info("content.stopped")

    async def _serve(self, server: uvicorn.Server) -> None:
        await server.serve(sockets=[self._listener])

    async def _open_root(self, volume_id: str, token: str) -> int:
        request = OpenVolume(volume_id, token)
        patience = anyio.current_time() + ABSENCE_S
        while True:
            try:
                _, descriptors = await link.call_for_descriptors(
                    self._node_socket, "open", request, timeout_s=OPEN_TIMEOUT_S
                )
            except link.NobodyListens:
                if anyio.current_time() > patience:
                    raise
                await anyio.sleep(_RETRY_S)
            except TimeoutError as error:
                raise DeadlineExceeded("the volume was not mounted in time") from error
            else:
                break
        if len(descriptors) != 1:
            raise Unavailable("the node passed no volume")
        # SAFETY: of our own node, over a socket that only it listens on; closed by the application.
        return descriptors[0]


def listen(config: Config) -> socket.socket:
    """Return the listening socket of the content; only the edge's user and root can connect to it."""
    return link.listen(config.content_socket, owner_uid=EDGE_UID if os.geteuid() == 0 else os.geteuid())
