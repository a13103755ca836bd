"""The api process: routes, middleware, server."""

import os
import signal
import socket
from types import FrameType

import anyio
import structlog
import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from cloche_server import link
from cloche_server.api.admin import AdminEndpoints
from cloche_server.api.auth import Authenticator
from cloche_server.api.build_tidying import tidy_regularly
from cloche_server.api.builds import BuildEndpoints
from cloche_server.api.control import ControlPlane
from cloche_server.api.events import EventEndpoints
from cloche_server.api.forks import ForkEndpoints
from cloche_server.api.freezing import FreezeEndpoints
from cloche_server.api.keys import KeyEndpoints
from cloche_server.api.listing import NEXT_PAGE_HEADER, TOTAL_HEADER, ListingEndpoints
from cloche_server.api.logs import LogEndpoints
from cloche_server.api.metrics import MetricsEndpoints
from cloche_server.api.pausing import PausingEndpoints
from cloche_server.api.rate_limits import RateLimits
from cloche_server.api.reconcile import compare_regularly, follow_node
from cloche_server.api.routing import Call, Route, Router
from cloche_server.api.sandboxes import SandboxEndpoints
from cloche_server.api.snapshots import SnapshotEndpoints
from cloche_server.api.template_tags import TagEndpoints
from cloche_server.api.templates import TemplateEndpoints
from cloche_server.api.timeouts import TimeoutEndpoints
from cloche_server.api.unserved import unserved_routes
from cloche_server.api.volumes import VolumeEndpoints
from cloche_server.clock import Clock, SystemClock
from cloche_server.config import EDGE_UID, Config
from cloche_server.placement.base import Placement
from cloche_server.placement.local import LocalPlacement
from cloche_server.placement.policy import Node
from cloche_server.store.store import Store

STOP_TIMEOUT_S = 5
"""How long requests that have begun may go on after SIGTERM."""
MAX_HEAD_BYTES = 32 * 1024

log = structlog.get_logger()


def create_app(config: Config, store: Store, placement: Placement, clock: Clock) -> ASGIApp:
    """Return the application alone, without the loops that keep rows true; for tests."""
    return app_of(ControlPlane.assemble(config, store, placement, clock))


def run(config: Config, listener: socket.socket | None = None) -> None:
    """Serve until SIGTERM, then let requests end and return.

    Args:
        config: The server's settings.
        listener: Made by `listen` while the process could still write to the run folder; None makes it now.
    """
    sock = listener or listen(config)
    try:
        anyio.run(_serve, config, sock)
    finally:
        sock.close()


def listen(config: Config) -> socket.socket:
    """Return the listening socket of the api; only the edge's user and root can connect to it."""
    return link.listen(config.api_socket, owner_uid=EDGE_UID if os.geteuid() == 0 else os.geteuid())


def app_of(control: ControlPlane) -> ASGIApp:
    """Return the application over parts that are already put together."""
    router = Router(
        routes_of(control),
        _authenticator(control),
        RateLimits(control.config.limits, control.clock),
    )
    # Open to every origin and without credentials: keys travel in a header that a page has to know.
    return CORSMiddleware(
        router,
        allow_origins=["*"],
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=[NEXT_PAGE_HEADER, TOTAL_HEADER, "Should-Retry", "Retry-After"],
        max_age=600,
    )


def routes_of(control: ControlPlane) -> list[Route]:
    """Return every route; of two that match a path, the first one is taken."""
    return [
        Route("GET", "/health", _health, public=True),
        *ListingEndpoints(control).routes(),
        *KeyEndpoints(control).routes(),
        *AdminEndpoints(control).routes(),
        *MetricsEndpoints(control).routes(),
        *EventEndpoints(control).routes(),
        *LogEndpoints(control).routes(),
        *PausingEndpoints(control).routes(),
        *FreezeEndpoints(control).routes(),
        *TimeoutEndpoints(control).routes(),
        *ForkEndpoints(control).routes(),
        *BuildEndpoints(control).routes(),
        *TagEndpoints(control).routes(),
        *TemplateEndpoints(control).routes(),
        *VolumeEndpoints(control).routes(),
        *unserved_routes(),
        *SnapshotEndpoints(control).routes(),
        *SandboxEndpoints(control).routes(),
    ]


def _authenticator(control: ControlPlane) -> Authenticator:
    try:
        admin_hash = control.config.admin_token_hash.read_text().strip()
    except FileNotFoundError:
        admin_hash = ""
    return Authenticator(control.store.keys, control.clock, admin_hash)


async def _health(_: Call) -> Response:
    return Response(status_code=204)


async def _serve(config: Config, listener: socket.socket) -> None:
    clock = SystemClock()
    store = Store.open(config.database, owner_uid=os.geteuid())
    try:
        control = ControlPlane.assemble(
            config, store, LocalPlacement(Node("local", config.node_socket)), clock
        )
        await store.liveness.forget_ended(clock.now())
        await control.templates.scan()
        server = uvicorn.Server(_uvicorn_config(app_of(control)))
        # At its end uvicorn raises the signal again for the handler it found: leave one that returns.
        signal.signal(signal.SIGTERM, _stop(server))
        log.info("api.started", socket=str(config.api_socket))
        async with control.builds.serving(), anyio.create_task_group() as tasks:
            tasks.start_soon(follow_node, control)
            tasks.start_soon(compare_regularly, control)
            tasks.start_soon(tidy_regularly, control)
            await server.serve(sockets=[listener])
            tasks.cancel_scope.cancel()
        log.info("api.stopped")
    finally:
        store.close()


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


def _stop(server: uvicorn.Server):  # noqa: ANN202 -- the type of a signal handler is longer than the function
    def handle(_: int, __: FrameType | None) -> None:
        server.should_exit = True

    return handle
