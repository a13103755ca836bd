"""Tags of templates over REST."""

from starlette.responses import Response

from cloche_server.api import build_shapes, template_names
from cloche_server.api.builds import own_template
from cloche_server.api.control import ControlPlane
from cloche_server.api.routing import Call, Route, reply, with_body
from cloche_server.store.builds import DEFAULT_TAG
from cloche_wire.errors import InvalidArgument, TemplateNotFound


class TagEndpoints:
    """Endpoints below `/templates/tags` and `/templates/{id}/tags`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._control = control
        self._tags = control.store.template_tags

    def routes(self) -> list[Route]:
        """What is served."""
        return [
            Route("POST", "/templates/tags", with_body(build_shapes.TagsBody, self.assign)),
            Route("DELETE", "/templates/tags", with_body(build_shapes.UntagBody, self.remove)),
            Route("GET", "/templates/{id}/tags", self.list),
        ]

    async def assign(self, call: Call, body: build_shapes.TagsBody) -> Response:
        """`POST /templates/tags`: the tags lead to the build that `target` means, from now on."""
        target = template_names.checked_name(call.caller, body.target)
        # A tag may come with the name of its template before it.
        tags = template_names.checked_tags(_of_template(target.name, tag) for tag in body.tags)
        if not tags:
            raise InvalidArgument("At least one tag is required")
        template = await own_template(self._control, call.caller, target.name)
        build = await self._tags.build_of(template.id, target.tag or DEFAULT_TAG)
        if build is None:
            raise TemplateNotFound(
                f"Template '{target.name}' with tag '{target.tag or DEFAULT_TAG}' not found"
            )
        await self._tags.assign(build, tags, self._control.clock.now())
        return reply(201, build_shapes.AssignedTags(tags, build.id))

    async def remove(self, call: Call, body: build_shapes.UntagBody) -> Response:
        """`DELETE /templates/tags`: the builds stay, and may be reached by other tags."""
        name = template_names.checked_name(call.caller, body.name)
        tags = template_names.checked_tags(body.tags)
        if name.tag:
            raise InvalidArgument("the name is without a tag: `tags` says which")
        if not tags:
            raise InvalidArgument("At least one tag is required")
        if DEFAULT_TAG in tags:
            raise InvalidArgument(f"Cannot delete the '{DEFAULT_TAG}' tag")
        template = await own_template(self._control, call.caller, name.name)
        await self._tags.remove(template.id, tags)
        return Response(status_code=204)

    async def list(self, call: Call) -> Response:
        """`GET /templates/{id}/tags`: the one assigned last first."""
        template = await own_template(self._control, call.caller, call.params["id"])
        found = await self._tags.list(template.id)
        return reply(200, [build_shapes.TemplateTag(tag.tag, tag.build_id, tag.assigned_at) for tag in found])


def _of_template(name: str, tag: str) -> str:
    """The tag of `name:tag`, where that is how it was written."""
    before, colon, after = tag.partition(":")
    if colon and before.strip().lower() != name:
        raise InvalidArgument(f"bad tag: {tag[:80]!r}", hint="a tag, or `name:tag` of the same template")
    return after if colon else tag
