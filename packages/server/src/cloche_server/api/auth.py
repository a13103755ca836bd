"""Who is calling: an API key stands for a team."""

from typing import NamedTuple

import structlog
from starlette.datastructures import Headers

from cloche_server.clock import Clock
from cloche_server.ids import TeamId
from cloche_server.store.keys import LAST_USED_STEP, Keys, KnownKey
from cloche_wire.errors import NotEnoughSpace, Unauthenticated, Unavailable

MAX_KEY_LENGTH = 256

log = structlog.get_logger()


class Caller(NamedTuple):
    """The team a request acts for, and the key it came with."""

    team_id: TeamId
    team_name: str
    key_id: str

    @classmethod
    def nobody(cls) -> "Caller":
        """The caller of a public route."""
        return cls(TeamId(""), "", "")


class Authenticator:
    """Checks keys against the store, each time anew, so that a revoked one stops working at once."""

    def __init__(self, keys: Keys, clock: Clock) -> None:
        """Look keys up here."""
        self._keys = keys
        self._clock = clock

    async def authenticate(self, headers: Headers) -> Caller:
        """Return whose request this is.

        Raises:
            Unauthenticated: No key, or one that is unknown or revoked.
        """
        key = headers.get("x-api-key") or _bearer(headers.get("authorization", ""))
        if not key:
            raise Unauthenticated("missing API key", hint="send it as header X-API-KEY")
        known = await self._keys.authenticate(key) if len(key) <= MAX_KEY_LENGTH else None
        if known is None:
            raise Unauthenticated("invalid API key")
        await self._note_use(known)
        return Caller(known.team_id, known.team_name, known.id)

    async def _note_use(self, known: KnownKey) -> None:
        now = self._clock.now()
        if known.last_used is not None and now - known.last_used < LAST_USED_STEP:
            return
        try:
            await self._keys.touch(known.id, known.team_id, now)
        except (Unavailable, NotEnoughSpace) as error:
            # Reads go on while the database cannot be written to.
            log.warning("api.key_use_not_noted", key_id=known.id, error=str(error))


def _bearer(value: str) -> str:
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
