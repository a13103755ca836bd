"""Templates as clients ask for them. Building them over REST comes with a later version."""

import base64

import msgspec
from starlette.responses import Response

from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.listing import NEXT_PAGE_HEADER, check_limit
from cloche_server.api.routing import Call, Route, reply, with_query
from cloche_server.store.templates import Template
from cloche_wire.errors import InvalidArgument


class TemplateEndpoints:
    """Endpoints below `/templates`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._templates = control.templates
        self._store = control.store.templates
        self._isolation = control.config.isolation

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("GET", "/templates/aliases/{alias}", self.alias),
            Route("GET", "/templates", self.list_all),
            Route("GET", "/default-templates", self.list_all),
            Route("GET", "/v2/templates", with_query(shapes.PageQuery, self.list_page)),
            Route("GET", "/templates/{id}", self.detail),
        ]

    async def alias(self, call: Call) -> Response:
        """Whether a name is taken, and by which template."""
        template = await self._templates.resolve(call.caller, call.params["alias"])
        return reply(200, shapes.TemplateAlias(template.id, template.is_public))

    async def detail(self, call: Call) -> Response:
        """One template and its build."""
        template = await self._templates.resolve(call.caller, call.params["id"])
        made = template.created_at
        build = shapes.TemplateBuild(
            template.build_id, made, made, made, template.cpu_count, template.memory_mib, template.disk_mib
        )
        shown = msgspec.structs.asdict(self._shown(template))
        return reply(200, shapes.TemplateWithBuilds(**shown, builds=[build]))

    async def list_all(self, call: Call) -> Response:
        """Every template the team may use."""
        return reply(200, [self._shown(template) for template in await self._store.list(call.caller.team_id)])

    async def list_page(self, call: Call, query: shapes.PageQuery) -> Response:
        """The same, a page at a time."""
        limit = check_limit(query.limit)
        after = _decode_token(query.next_token)
        found = await self._store.list(call.caller.team_id, after=after, limit=limit + 1)
        headers: dict[str, str] = {}
        if len(found) > limit:
            headers[NEXT_PAGE_HEADER] = base64.urlsafe_b64encode(found[limit - 1].id.encode()).decode()
        return reply(200, [self._shown(template) for template in found[:limit]], headers)

    def _shown(self, template: Template) -> shapes.Template:
        return shapes.Template(
            template.id,
            template.build_id,
            template.cpu_count,
            template.memory_mib,
            template.disk_mib,
            template.is_public,
            template.aliases,
            template.aliases,
            template.created_at,
            template.created_at,
            template.last_spawned_at,
            template.spawn_count,
            is_default=template.is_public,
            isolation=template.isolation or self._isolation,
        )


def _decode_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError as error:
        raise InvalidArgument("nextToken is not one of ours") from error
