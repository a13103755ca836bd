"""Who is calling: an API key stands for a team."""

import hmac
from typing import NamedTuple

import structlog
from starlette.datastructures import Headers

from cloche_server.clock import Clock
from cloche_server.ids import TeamId, hash_api_key
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

    def __init__(self, keys: Keys, clock: Clock, admin_hash: str = "") -> None:
        """Look keys up here; `admin_hash` is that of the operator's token, "" lets nobody be the operator."""
        self._keys = keys
        self._clock = clock
        self._admin_hash = admin_hash

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

    def authenticate_admin(self, headers: Headers) -> Caller:
        """Return the operator, acting for the team that `X-Team-ID` names, if it names one.

        Raises:
            Unauthenticated: No token, or a wrong one.
        """
        token = headers.get("x-admin-token", "")
        # Hashes are compared, and in constant time.
        if not self._admin_hash or not hmac.compare_digest(hash_api_key(token), self._admin_hash):
            raise Unauthenticated(
                "admin token is missing or wrong", hint="X-Admin-Token is kept in STATE/admin-token"
            )
        return Caller(TeamId(headers.get("x-team-id", "")), "", "admin")

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
