"""Templates as clients ask for them: listings, who may use them, their end. Builds stand in `builds`."""

import base64
from collections.abc import Sequence

import msgspec
import structlog
from starlette.responses import Response

from cloche_server.api import build_shapes, shapes
from cloche_server.api.auth import Caller
from cloche_server.api.builds import own_template
from cloche_server.api.control import ControlPlane
from cloche_server.api.listing import NEXT_PAGE_HEADER, check_limit
from cloche_server.api.routing import Call, Route, reply, with_body, with_query
from cloche_server.store.builds import BuildRecord
from cloche_server.store.templates import Template
from cloche_wire.errors import InvalidArgument

log = structlog.get_logger()


class TemplateEndpoints:
    """Endpoints below `/templates`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control
        self._templates = control.templates
        self._store = control.store.templates
        self._isolation = control.config.isolation
        self._builds = control.store.builds

    def routes(self) -> list[Route]:
        """What is served."""
        change = with_body(build_shapes.TemplateChange, self.change)
        return [
            Route("GET", "/templates/aliases/{alias}", self.alias),
            Route("GET", "/templates", self.list_all),
            Route("GET", "/default-templates", self.list_default),
            Route("GET", "/v2/templates", with_query(shapes.PageQuery, self.list_page)),
            Route("GET", "/templates/{id}", with_query(shapes.PageQuery, self.detail)),
            Route("PATCH", "/v2/templates/{id}", change),
            Route("PATCH", "/templates/{id}", change),
        ]

    async def alias(self, call: Call) -> Response:
        """Whether a name is taken, and by which template."""
        template = await self._templates.known(call.caller, call.params["alias"])
        return reply(200, shapes.TemplateAlias(template.id, template.is_public))

    async def detail(self, call: Call, query: shapes.PageQuery) -> Response:
        """One template and its builds, newest first, a page at a time."""
        template = await self._templates.known(call.caller, call.params["id"])
        (shown,) = await self._shown([template])
        limit, headers = check_limit(query.limit), dict[str, str]()
        if template.is_default:
            found = [_only_build(template)]
        else:
            skip = int(_decode_token(query.next_token) or 0)
            builds = await self._builds.of_template(template.id, skip=skip, limit=limit + 1)
            if len(builds) > limit:
                headers[NEXT_PAGE_HEADER] = _encode_token(str(skip + limit))
            found = [_shown_build(build) for build in builds[:limit]]
        return reply(200, shapes.TemplateWithBuilds(**msgspec.structs.asdict(shown), builds=found), headers)

    async def list_all(self, call: Call) -> Response:
        """Every template the team may use by its bare name."""
        return reply(200, await self._shown(await self._store.list(call.caller.team_id)))

    async def list_default(self, call: Call) -> Response:
        """Those that came with the server."""
        found = await self._store.list(call.caller.team_id)
        return reply(200, await self._shown([template for template in found if template.is_default]))

    async def list_page(self, call: Call, query: shapes.PageQuery) -> Response:
        """The same as `list_all`, a page at a time."""
        limit = check_limit(query.limit)
        after = _decode_token(query.next_token)
        found = await self._store.list(call.caller.team_id, after=after, limit=limit + 1)
        headers: dict[str, str] = {}
        if len(found) > limit:
            headers[NEXT_PAGE_HEADER] = _encode_token(found[limit - 1].id)
        return reply(200, await self._shown(found[:limit]), headers)

    async def change(self, call: Call, body: build_shapes.TemplateChange) -> Response:
        """`PATCH /v2/templates/{id}`: whether other teams may use it, and whether it is pinned."""
        template = await own_template(self._control, call.caller, call.params["id"])
        if body.public is not None:
            await self._store.set_public(call.caller.team_id, template.id, is_public=body.public)
        if body.pinned is not None:
            await self._store.set_pinned(call.caller.team_id, template.id, is_pinned=body.pinned)
        names = [f"{call.caller.team_name.lower()}/{name}" for name in template.aliases]
        return reply(200, build_shapes.TemplateNames(names))

    async def _shown(self, templates: Sequence[Template]) -> list[shapes.Template]:
        newest = await self._builds.newest_of([template.id for template in templates])
        return [self._shown_one(template, newest.get(template.id)) for template in templates]

    def _shown_one(self, template: Template, builds: tuple[int, BuildRecord] | None) -> shapes.Template:
        count, newest = builds or (1, None)
        return shapes.Template(
            template.id,
            template.build_id or (newest.id if newest else ""),
            template.cpu_count,
            template.memory_mib,
            template.disk_mib,
            template.is_public,
            template.aliases,
            template.aliases,
            template.created_at,
            newest.updated_at if newest else template.created_at,
            template.last_spawned_at,
            template.spawn_count,
            is_default=template.is_default,
            build_count=count,
            build_status=newest.state if newest else "ready",
            isolation=template.isolation or self._isolation,
            pinned=template.is_pinned,
        )


async def remove_template(control: ControlPlane, caller: Caller, reference: str) -> None:
    """End a template of the caller's team: its builds that run, its names, and what is on disk of it.

    Raises:
        TemplateNotFound: The team may use none of that id or name.
        PermissionDenied: It is another's.
        InvalidArgument: Sandboxes or snapshots stand on it.
    """
    template = await own_template(control, caller, reference)
    if await control.store.templates.is_in_use(template.id):
        raise InvalidArgument(
            f"cannot delete template '{template.name}' because there are sandboxes or snapshots of it",
            hint="kill the sandboxes and delete the snapshots first",
        )
    for build in await control.store.builds.of_template(template.id):
        await control.builds.stop(build, "stopped: its template is deleted")
    removed = await control.store.builds.remove_template(caller.team_id, template.id)
    for build in removed or ():
        if build.state == "ready":
            await control.workshop.remove(build.id)
    log.info("template.removed", template_id=template.id, team_id=caller.team_id)


def _encode_token(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError as error:
        raise InvalidArgument("nextToken is not one of ours") from error


def _only_build(template: Template) -> shapes.TemplateBuild:
    made = template.created_at
    size = (template.cpu_count, template.memory_mib, template.disk_mib)
    return shapes.TemplateBuild(template.build_id, made, made, *size, finished_at=made)


def _shown_build(build: BuildRecord) -> shapes.TemplateBuild:
    return shapes.TemplateBuild(
        build.id,
        build.created_at,
        build.updated_at,
        build.cpu_count,
        build.memory_mib,
        disk_mib=0,
        finished_at=build.finished_at or msgspec.UNSET,
        status=build.state,
    )
