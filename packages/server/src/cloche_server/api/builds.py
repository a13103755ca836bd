"""Building templates over REST: a request for a build, its files, its start, and how far it is."""

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cloche_server import isolation_choice
from cloche_server.api import build_shapes, template_names
from cloche_server.api.auth import Caller
from cloche_server.api.control import ControlPlane
from cloche_server.api.listing import check_limit
from cloche_server.api.routing import Call, Route, reply, with_body, with_query
from cloche_server.ids import BuildId, new_template_id
from cloche_server.store.builds import BuildRecord, LogLine
from cloche_server.store.templates import Template
from cloche_server.templates import steps
from cloche_wire.errors import Conflict, InvalidArgument, PermissionDenied

DEFAULT_CPU_COUNT = 2
DEFAULT_MEMORY_MIB = 1024
MAX_CPU_COUNT = 64
MIN_MEMORY_MIB = 128
MAX_MEMORY_MIB = 256 * 1024
_LEVELS = ("debug", "info", "warn", "error")
_MAX_REASON_LINES = 100


class BuildEndpoints:
    """Endpoints below `/v3/templates` and `/templates/{id}/builds`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control
        self._builds = control.store.builds

    def routes(self) -> list[Route]:
        """What is served."""
        request = with_body(build_shapes.NewBuild, self.request)
        start = with_body(steps.Description, self.start)
        status = with_query(build_shapes.StatusQuery, self.status)
        logs = with_query(build_shapes.BuildLogsQuery, self.logs)
        uploads = self._control.uploads
        return [
            Route("POST", "/v3/templates", request, retry_safe=False),
            Route("GET", "/templates/{id}/files/{hash}", self.files_link),
            Route("PUT", "/templates/uploads/{token}", uploads.receive, public=True),
            Route("POST", "/v2/templates/{id}/builds/{build}", start, retry_safe=False),
            Route("GET", "/templates/{id}/builds/{build}/status", status),
            Route("GET", "/templates/{id}/builds/{build}/logs", logs),
        ]

    async def request(self, call: Call, body: build_shapes.NewBuild) -> Response:
        """`POST /v3/templates`: a build of a new template, or of the one that has the name."""
        name = template_names.checked_name(call.caller, body.name or body.alias)
        tags = template_names.tags_of_build(name, body.tags or ())
        now = self._control.clock.now()
        record = BuildRecord(
            BuildId(str(uuid.uuid4())),
            new_template_id(),
            call.caller.team_id,
            tags,
            _within("cpuCount", body.cpu_count, DEFAULT_CPU_COUNT, 1, MAX_CPU_COUNT),
            _within("memoryMB", body.memory_mib, DEFAULT_MEMORY_MIB, MIN_MEMORY_MIB, MAX_MEMORY_MIB),
            now,
            now,
        )
        template_id = await self._builds.request(record, name.name)
        template = await self._control.templates.known(call.caller, template_id)
        answer = build_shapes.BuildRequested(
            template_id, record.id, template.is_public, template.aliases, tags, template.aliases
        )
        return reply(202, answer)

    async def files_link(self, call: Call) -> Response:
        """`GET /templates/{id}/files/{hash}`: where to send an archive, and whether it is there."""
        await own_template(self._control, call.caller, call.params["id"])
        files_hash = call.params["hash"]
        if not steps.is_files_hash(files_hash):
            raise InvalidArgument("the hash of files is 64 lower hex digits")
        team, uploads = call.caller.team_id, self._control.uploads
        url = _origin(call.request) + uploads.path_for(team, files_hash)
        return reply(201, build_shapes.FilesLink(uploads.has(team, files_hash), url))

    async def start(self, call: Call, body: steps.Description) -> Response:
        """`POST /v2/templates/{id}/builds/{build}`: the answer comes at once; `status` tells the rest."""
        template = await own_template(self._control, call.caller, call.params["id"])
        build = await self._build(call)
        steps.check(body)
        config = self._control.config
        isolation_choice.settle(body.isolation, "", config.isolation, config.allow_isolation)
        self._check_files(call.caller, body)
        if not await self._control.builds.start(call.caller, build, template.name, body):
            raise InvalidArgument("build is not in waiting state")
        return Response(status_code=202)

    async def status(self, call: Call, query: build_shapes.StatusQuery) -> Response:
        """`GET /templates/{id}/builds/{build}/status`: `logsOffset` is how many entries are known."""
        build = await self._build(call)
        if query.logs_offset < 0:
            raise InvalidArgument("logsOffset is not negative")
        limit, levels = check_limit(query.limit), _from_level(query.level)
        # Read after the row: a build that has ended writes no more.
        lines = await self._builds.log(build.id, offset=query.logs_offset, limit=limit, levels=levels)
        answer = build_shapes.BuildStatus(
            build.template_id, build.id, build.state, [], [_shown(line) for line in lines]
        )
        if build.state == "error":
            answer = msgspec.structs.replace(answer, reason=await self._reason(build))
        return reply(200, answer)

    async def logs(self, call: Call, query: build_shapes.BuildLogsQuery) -> Response:
        """`GET /templates/{id}/builds/{build}/logs`: from a moment on, or before it."""
        build = await self._build(call)
        is_backward = query.direction == "backward"
        at = None if query.cursor is None else datetime.fromtimestamp(query.cursor / 1000, UTC)
        lines = await self._builds.log(
            build.id,
            limit=check_limit(query.limit),
            levels=_from_level(query.level),
            since=None if is_backward else at,
            until=at if is_backward else None,
            is_backward=is_backward,
        )
        return reply(200, build_shapes.BuildLogs([_shown(line) for line in lines]))

    async def _reason(self, build: BuildRecord) -> build_shapes.Reason:
        if build.step is None:
            return build_shapes.Reason(build.message, [])
        lines = await self._builds.log(
            build.id, limit=_MAX_REASON_LINES, levels=("warn", "error"), step=build.step
        )
        return build_shapes.Reason(build.message, [_shown(line) for line in lines], build.step)

    async def _build(self, call: Call) -> BuildRecord:
        found = await self._builds.get(call.caller.team_id, call.params["id"], call.params["build"])
        if found is None:
            raise InvalidArgument(f"Build '{call.params['build'][:64]}' not found")
        return found

    def _check_files(self, caller: Caller, body: steps.Description) -> None:
        for where in (body, *body.stages):
            for number, step in enumerate(where.steps, 1):
                if step.files_hash and not self._control.uploads.has(caller.team_id, step.files_hash):
                    raise Conflict(f"the files of step {number} were not uploaded: {step.files_hash}")


async def own_template(control: ControlPlane, caller: Caller, reference: str) -> Template:
    """Return a template that the caller's team has made.

    Raises:
        TemplateNotFound: The caller may not even use one of that id or name.
        PermissionDenied: It is another team's, or everyone's.
    """
    template = await control.templates.known(caller, reference)
    if template.owner != caller.team_id:
        raise PermissionDenied(f"template '{reference[:128]}' is not your team's")
    return template


def _within(name: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise InvalidArgument(f"{name} is between {low} and {high}: {value}")
    return value


def _origin(request: Request) -> str:
    """Scheme and address under which the client has reached us."""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", request.url.scheme)
    return f"{scheme}://{headers.get('x-forwarded-host') or headers.get('host', '')}"


def _from_level(level: str | None) -> Iterable[str]:
    return () if level is None else _LEVELS[_LEVELS.index(level) :]


def _shown(line: LogLine) -> build_shapes.BuildLogEntry:
    entry = build_shapes.BuildLogEntry(line.at, line.message, line.level)
    return entry if line.step is None else msgspec.structs.replace(entry, step=line.step)
