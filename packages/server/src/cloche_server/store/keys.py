"""Teams and their API keys. A key itself is never stored: only its SHA-256 and a mask to recognise it by."""

import secrets
import uuid
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import Connection, bindparam, insert, or_, select, update

from cloche_server.ids import TeamId, hash_api_key, new_api_key
from cloche_server.store.schema import api_keys, teams
from cloche_server.store.session import Database

DEFAULT_TEAM = "default"
LAST_USED_STEP = timedelta(minutes=1)
"""`last_used` is written at most this often per key, so that reads stay reads."""

_VALID = (
    select(api_keys.c.id, api_keys.c.team_id, teams.c.name, api_keys.c.last_used)
    .join(teams, teams.c.id == api_keys.c.team_id)
    .where(api_keys.c.hash == bindparam("digest"), api_keys.c.revoked_at.is_(None))
)


class ApiKey(msgspec.Struct, frozen=True):
    """What is known of a key."""

    id: str
    team_id: TeamId
    name: str
    mask: str
    created_at: datetime
    last_used: datetime | None = None
    revoked_at: datetime | None = None


class KnownKey(msgspec.Struct, frozen=True):
    """A valid key as a request needs it: whom it stands for."""

    id: str
    team_id: TeamId
    team_name: str
    last_used: datetime | None


def mask_of(key: str) -> str:
    """Return what people recognise a key by: `e2b_`, two leading and four trailing characters of the rest."""
    return f"{key[:6]}...{key[-4:]}"


class Keys:
    """Keys of all teams, for authentication and for the operator."""

    def __init__(self, database: Database) -> None:
        """Use this database."""
        self._database = database

    async def authenticate(self, key: str) -> KnownKey | None:
        """Return whom the key stands for, None for an unknown or revoked one. Not cached."""
        digest = hash_api_key(key)

        def work(connection: Connection) -> KnownKey | None:
            # The comparison is of hashes, so its timing tells nothing about a key.
            row = connection.execute(_VALID, {"digest": digest}).one_or_none()
            return None if row is None else KnownKey(*row)

        return await self._database.read(work)

    async def touch(self, key_id: str, team: TeamId, now: datetime) -> None:
        """Note that the key was used, unless that was noted within the last minute."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.team_id == team)
                .where(or_(api_keys.c.last_used.is_(None), api_keys.c.last_used <= now - LAST_USED_STEP))
                .values(last_used=now)
            )

        await self._database.write(work)

    async def of_team(self, team: TeamId) -> "list[ApiKey] | None":
        """The team's keys that are in use, oldest first; None when there is no such team."""

        def work(connection: Connection) -> list[ApiKey] | None:
            if not _has_team(connection, team):
                return None
            rows = connection.execute(
                select(api_keys)
                .where(api_keys.c.team_id == team, api_keys.c.revoked_at.is_(None))
                .order_by(api_keys.c.created_at, api_keys.c.id)
            ).mappings()
            return [ApiKey(**{field: row[field] for field in ApiKey.__struct_fields__}) for row in rows]

        return await self._database.read(work)

    async def add(self, name: str, team: TeamId, now: datetime) -> tuple[ApiKey, str] | None:
        """Make a key of a team that exists; None when it does not.

        Returns:
            What is stored, and the key itself, which nobody can ask for again.
        """
        value = new_api_key()

        def work(connection: Connection) -> ApiKey | None:
            return _insert_key(connection, name, team, now, value) if _has_team(connection, team) else None

        made = await self._database.write(work)
        return None if made is None else (made, value)

    async def change(self, key_id: str, team: TeamId, **values: object) -> bool:
        """Set columns of a key of that team that is in use; False where there is none."""

        def work(connection: Connection) -> bool:
            result = connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.team_id == team, api_keys.c.revoked_at.is_(None))
                .values(**values)
            )
            return result.rowcount == 1

        return await self._database.write(work)

    def create(
        self, name: str, team_name: str, now: datetime, *, key: str | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key and, when it is new, its team.

        Returns:
            What is stored, and the key itself, which nobody can ask for again.
        """
        value = key or new_api_key()

        def work(connection: Connection) -> ApiKey:
            team = _ensure_team(connection, team_name, now)
            return _insert_key(connection, name, team, now, value)

        return self._database.write_now(work), value

    def list(self) -> list[tuple[ApiKey, str]]:
        """Every key with its team's name, oldest first; revoked ones too."""

        def work(connection: Connection) -> list[tuple[ApiKey, str]]:
            rows = connection.execute(
                select(api_keys, teams.c.name.label("team_name"))
                .join(teams, teams.c.id == api_keys.c.team_id)
                .order_by(api_keys.c.created_at, api_keys.c.id)
            ).mappings()
            return [
                (ApiKey(**{field: row[field] for field in ApiKey.__struct_fields__}), str(row["team_name"]))
                for row in rows
            ]

        return self._database.read_now(work)

    def revoke(self, key_id: str, now: datetime) -> bool:
        """End a key: the next request with it answers 401. False for an unknown or already revoked one."""

        def work(connection: Connection) -> bool:
            result = connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            return result.rowcount == 1

        return self._database.write_now(work)


def _has_team(connection: Connection, team: TeamId) -> bool:
    return connection.execute(select(teams.c.id).where(teams.c.id == team)).first() is not None


def _insert_key(connection: Connection, name: str, team: TeamId, now: datetime, value: str) -> ApiKey:
    made = ApiKey("key_" + secrets.token_hex(6), team, name, mask_of(value), now)
    row = msgspec.structs.asdict(made) | {"hash": hash_api_key(value)}
    connection.execute(insert(api_keys).values(row))
    return made


def _ensure_team(connection: Connection, name: str, now: datetime) -> TeamId:
    found = connection.execute(select(teams.c.id).where(teams.c.name == name)).scalar_one_or_none()
    if found is not None:
        return TeamId(str(found))
    team = TeamId(str(uuid.uuid4()))
    connection.execute(insert(teams).values(id=team, name=name, created_at=now))
    return team
