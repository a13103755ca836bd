"""The listener that speaks envd: which path is served by what, and who may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloche_agent import forward
from cloche_agent.filesystem.service import FilesystemService
from cloche_agent.filesystem.transfer import TransferRoutes
from cloche_agent.http import Response, json_response
from cloche_agent.init import handle_init, handle_prepare
from cloche_agent.metrics import Metrics
from cloche_agent.process.service import ProcessService
from cloche_agent.process.start_command import StartCommand
from cloche_agent.quiesce import handle_quiesce
from cloche_agent.relieve import handle_relieve
from cloche_agent.rpc import Router
from cloche_wire.errors import InvalidArgument, NotFound, Unauthenticated

if TYPE_CHECKING:
    import asyncio

    from cloche_agent.http import Handler, Request
    from cloche_agent.init import Sandbox
    from cloche_agent.process.spawn import Reaper

_LONGEST_MS = 15
_RPC_PREFIXES = ("/process.Process/", "/filesystem.Filesystem/")


def envd_handler(sandbox: Sandbox, reaper: Reaper, tasks: asyncio.TaskGroup) -> Handler:
    """Everything of wire.md 3 as one handler.

    Args:
        sandbox: Whose token opens it; without one, all but /health and the first /init are refused.
        reaper: Tells how processes ended.
        tasks: Owner of what outlives a request.
    """
    router = Router()
    processes = ProcessService(sandbox, reaper, tasks)
    processes.register(router)
    start_command = StartCommand(sandbox, processes)
    FilesystemService(sandbox).register(router)
    transfer = TransferRoutes(sandbox)
    metrics = Metrics(sandbox)

    async def handle(request: Request) -> Response:
        match request.path:
            case "/health":
                return Response(204, [("cache-control", "no-store")])
            case "/init" | "/prepare" | "/ready" if request.method == "POST":
                return await _begin(sandbox, start_command, request)
            case "/files":
                return await transfer.files(request)
            case _:
                pass
        if not sandbox.authorized(request.headers.get("x-access-token")):
            raise Unauthenticated("access token is missing or wrong")
        match request.path:
            case "/metrics" | "/logs" | "/envs":
                return _tell(sandbox, metrics, request)
            case "/files/compose" if request.method == "POST":
                return await transfer.compose(request)
            case path if path.startswith(_RPC_PREFIXES):
                return await router.handle(request)
            case _:
                return await _serve_node(sandbox, reaper, request)

    return handle


async def _begin(sandbox: Sandbox, start_command: StartCommand, request: Request) -> Response:
    """What the node asks for at the beginning. `/ready` is answered when the start command is so far."""
    if request.path == "/ready":
        if sandbox.token is not None and not sandbox.authorized(request.headers.get("x-access-token")):
            raise Unauthenticated("access token is missing or wrong")
        await start_command.until_ready()
        return Response(204)
    answer = await (handle_init if request.path == "/init" else handle_prepare)(sandbox, request)
    start_command.begin()
    return answer


async def _serve_node(sandbox: Sandbox, reaper: Reaper, request: Request) -> Response:
    """Paths that the node keeps from everybody else."""
    match request.method, request.path:
        case "GET", path if path.startswith(forward.PREFIX):
            return await forward.handle_forward(request)
        case "POST", "/quiesce":
            return await handle_quiesce(sandbox, reaper)
        case "POST", "/relieve":
            return handle_relieve(sandbox, reaper)
        case _, path:
            raise NotFound(f"no such path: {path}")


def _tell(sandbox: Sandbox, metrics: Metrics, request: Request) -> Response:
    if request.path == "/metrics":
        return json_response(metrics.read())
    if request.path == "/envs":
        return json_response(sandbox.env)
    # For the node, which keeps this path from everybody else: entries from `since` (ms) on.
    since = request.parameter("since") or "0"
    if not (since.isascii() and since.isdecimal() and len(since) <= _LONGEST_MS):
        raise InvalidArgument("since is not a Unix time in milliseconds")
    return Response(200, [("content-type", "application/json")], sandbox.activity.since(int(since)))
