"""Teams and their API keys over HTTP.

A key may do what its team may do, and no more: it makes no other keys, so that revoking a stolen one ends
what the thief can do. Keys are managed by the operator, who has the admin token (`docs/adr/0011`).
"""

import structlog
from starlette.responses import Response

from cloche_server.api import shapes
from cloche_server.api.control import ControlPlane
from cloche_server.api.routing import Call, Route, reply, with_body
from cloche_server.ids import API_KEY_PREFIX
from cloche_server.store.keys import ApiKey
from cloche_wire.errors import ClocheError, InvalidArgument, NotFound

MAX_NAME_LENGTH = 200

log = structlog.get_logger()


class Gone(ClocheError):  # noqa: N818 - the name of the status
    """Was served once, and never will be again."""

    http_status = 410


class KeyEndpoints:
    """`/teams`, `/api-keys`, `/access-tokens`."""

    def __init__(self, control: ControlPlane) -> None:
        """Work with these parts."""
        self._keys = control.store.keys
        self._clock = control.clock

    def routes(self) -> list[Route]:
        """What is served."""
        one = "/api-keys/{id}"
        create, rename = with_body(shapes.KeyName, self.create), with_body(shapes.KeyName, self.rename)
        return [
            Route("GET", "/teams", self.teams),
            Route("GET", "/api-keys", self.list_all, admin=True),
            Route("POST", "/api-keys", create, admin=True, retry_safe=False),
            Route("PATCH", one, rename, admin=True),
            Route("DELETE", one, self.revoke, admin=True),
            Route("POST", "/access-tokens", self.refuse_tokens),
        ]

    async def teams(self, call: Call) -> Response:
        """`GET /teams`: the team whose key this is. Clients want a key in the answer and get their own."""
        headers = call.request.headers
        key = headers.get("x-api-key") or headers["authorization"].partition(" ")[2].strip()
        return reply(200, [shapes.Team(call.caller.team_id, call.caller.team_name, key)])

    async def list_all(self, call: Call) -> Response:
        """`GET /api-keys`: the team's keys that are in use."""
        found = await self._keys.of_team(call.caller.team_id)
        if found is None:
            raise _no_team()
        return reply(200, [_shown(key) for key in found])

    async def create(self, call: Call, body: shapes.KeyName) -> Response:
        """`POST /api-keys`: the key is shown this once."""
        made = await self._keys.add(_checked(body.name), call.caller.team_id, self._clock.now())
        if made is None:
            raise _no_team()
        log.info("key.created", key_id=made[0].id, team_id=call.caller.team_id)
        shown = _shown(made[0])
        fields = {name: getattr(shown, name) for name in shown.__struct_fields__}
        return reply(201, shapes.CreatedKey(**fields, key=made[1]))

    async def rename(self, call: Call, body: shapes.KeyName) -> Response:
        """`PATCH /api-keys/{id}`."""
        await self._change(call, name=_checked(body.name))
        return Response(status_code=200)

    async def revoke(self, call: Call) -> Response:
        """`DELETE /api-keys/{id}`: the next request with it is refused."""
        await self._change(call, revoked_at=self._clock.now())
        log.info("key.revoked", key_id=call.params["id"], team_id=call.caller.team_id)
        return Response(status_code=204)

    async def refuse_tokens(self, _: Call) -> Response:
        """`POST /access-tokens`: clients have not read these for long."""
        raise Gone("access tokens are no longer made", hint="use an API key")

    async def _change(self, call: Call, **values: object) -> None:
        if not await self._keys.change(call.params["id"], call.caller.team_id, **values):
            raise NotFound(f"no such key of this team: {call.params['id'][:60]}")


def _no_team() -> NotFound:
    return NotFound("no such team", hint="X-Team-ID names the team; `GET /teams` tells a key's own")


def _checked(name: str) -> str:
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidArgument(f"name is not 1 to {MAX_NAME_LENGTH} printable characters")
    return name


def _shown(key: ApiKey) -> shapes.TeamApiKey:
    # Stored as `e2b_ab...wxyz` (store.keys.mask_of); every key has 40 characters behind its prefix.
    start, _, end = key.mask.removeprefix(API_KEY_PREFIX).partition("...")
    mask = shapes.KeyMask(API_KEY_PREFIX, 40, start, end)
    return shapes.TeamApiKey(key.id, key.name, mask, key.created_at, key.last_used)
