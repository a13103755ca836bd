"""Forking and snapshots: no isolation of this server keeps a sandbox's memory yet.

Each request is checked as far as it goes without that, so that a client learns of its own mistakes first.
"""

from starlette.responses import Response

from cloche_server.api import memory_shapes as shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.listing import check_limit
from cloche_server.api.options import check_timeout
from cloche_server.api.owned import running_sandbox, sandbox_id_of
from cloche_server.api.routing import Call, Route, reply, with_body, with_query
from cloche_server.store.sandboxes import SandboxRecord
from cloche_wire.errors import InvalidArgument, UnsupportedOption

MAX_FORKS = 100


class MemoryEndpoints:
    """Endpoints that need the memory of a sandbox, and the listing of what they would have made."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control

    def routes(self) -> list[Route]:
        """What is served."""
        one = "/sandboxes/{id}"
        fork = with_body(shapes.ForkBody, self.fork)
        snapshot = with_body(shapes.SnapshotBody, self.snapshot)
        return [
            Route("POST", f"{one}/fork", fork, retry_safe=False, creates=True),
            Route("POST", f"{one}/snapshots", snapshot, creates=True),
            Route("GET", "/snapshots", with_query(shapes.SnapshotsQuery, self.list_snapshots)),
        ]

    async def fork(self, call: Call, body: shapes.ForkBody) -> Response:
        """`POST /sandboxes/{id}/fork`."""
        if body.count < 1:
            raise InvalidArgument("Count must be at least 1")
        if body.count > MAX_FORKS:
            raise InvalidArgument(f"Count cannot be greater than {MAX_FORKS}")
        check_timeout(body.timeout, self._control.config.limits)
        raise _refused("fork", await running_sandbox(self._control, call))

    async def snapshot(self, call: Call, _: shapes.SnapshotBody) -> Response:
        """`POST /sandboxes/{id}/snapshots`."""
        raise _refused("snapshots", await running_sandbox(self._control, call))

    async def list_snapshots(self, call: Call, query: shapes.SnapshotsQuery) -> Response:
        """`GET /snapshots`: there are none, so there is never another page."""
        check_limit(query.limit)
        if query.next_token:
            raise InvalidArgument("nextToken is not one of ours")
        if query.sandbox_id:
            sandbox_id_of(call._replace(params={"id": query.sandbox_id}))
        return reply(200, [])


def _refused(verb: str, record: SandboxRecord) -> UnsupportedOption:
    return UnsupportedOption(
        f"{verb} is not supported: isolation '{record.isolation}' cannot keep the memory of a sandbox",
        hint="isolation 'gvisor' will; until then keep it running with set_timeout, or what matters in files",
    )
