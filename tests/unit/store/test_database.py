"""The file: migrations, modes, transactions."""

import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime

import anyio
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, insert, select, text

from cloche_server.config import Config
from cloche_server.store.schema import VERSION, builds, events, metadata, sandboxes, teams
from cloche_server.store.session import MIGRATIONS
from cloche_server.store.store import Store
from cloche_wire.errors import Unavailable

NEW_OF_SANDBOXES = ("snapshot_id", "parent_id", "pause_mode", "run")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def count_teams(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(teams)).scalar_one()


def test_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert store.database.read_now(differences) == []


def test_the_version_is_that_of_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [VERSION]


def test_a_sandbox_of_the_first_tables_has_asked_for_nothing_new(config: Config, store: Store) -> None:
    def insert_old(connection: Connection) -> dict[str, object]:
        connection.execute(text("INSERT INTO teams VALUES ('t', 't', '2026-01-01 00:00:00')"))
        connection.execute(
            text(
                "INSERT INTO sandboxes (id, team_id, template_id, build_id, alias, metadata, access_token,"
                " allow_internet, cpu_count, memory_mib, disk_mib, started_at, end_at, state, isolation)"
                " VALUES ('i1', 't', 'x', 'b', 'base', '{}', 'k', 1, 2, 512, 0,"
                " '2026-01-01 00:00:00', '2026-01-01 00:05:00', 'running', 'container')"
            )
        )
        columns = (sandboxes.c.network, sandboxes.c.lifecycle, sandboxes.c.volume_mounts)
        made_of = (sandboxes.c.snapshot_id, sandboxes.c.parent_id, sandboxes.c.pause_mode, sandboxes.c.run)
        return dict(connection.execute(select(*columns, *made_of)).mappings().one())

    assert store.database.write_now(insert_old) == {
        "network": {},
        "lifecycle": {},
        "volume_mounts": [],
        "snapshot_id": None,
        "parent_id": None,
        "pause_mode": "full",
        "run": 1,
    }


def test_a_database_of_the_version_before_is_brought_up_with_its_rows(store: Store) -> None:
    def go_back(connection: Connection) -> None:
        connection.execute(text("INSERT INTO teams VALUES ('t', 't', '2026-01-01 00:00:00')"))
        connection.execute(
            text(
                "INSERT INTO events"
                " (id, team_id, sandbox_id, template_id, build_id, kind, details, happened_at)"
                " VALUES ('e', 't', 'i1', 'x', 'b', 'created', '{}', '2026-01-01 00:00:00')"
            )
        )
        for table in ("pauses", "snapshots", "builds", "build_logs", "template_tags", "cached_steps"):
            connection.execute(text(f"DROP TABLE {table}"))
        new = [("events", "run"), *(("templates", name) for name in ("is_public", "isolation", "is_pinned"))]
        for table, column in [*new, *(("sandboxes", name) for name in NEW_OF_SANDBOXES)]:
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))

    store.database.write_now(go_back)
    store.database.migrate()
    assert store.database.read_now(lambda c: c.execute(select(events.c.run)).scalar_one()) == 1
    assert store.database.read_now(count_teams) == 1


def test_builds_of_before_have_the_isolation_of_their_template(store: Store) -> None:
    def go_back(connection: Connection) -> None:
        for table, column in (
            ("builds", "isolation"),
            ("templates", "is_pinned"),
            ("cached_steps", "template_id"),
            ("snapshots", "volume_mounts"),
        ):
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        for statement in (
            "INSERT INTO teams VALUES ('t', 't', '2026-01-01 00:00:00')",
            "INSERT INTO templates (id, owner, build_id, name, aliases, cpu_count, memory_mib, disk_mib,"
            " created_at, isolation, spawn_count)"
            " VALUES ('x', 't', 'b', 'mine', '[]', 2, 512, 0, '2026-01-01 00:00:00', 'gvisor', 0)",
            "INSERT INTO builds (id, template_id, team_id, state, tags, cpu_count, memory_mib, created_at,"
            " updated_at, message) VALUES ('b', 'x', 't', 'ready', '[]', 2, 512, '2026-01-01 00:00:00',"
            " '2026-01-01 00:00:00', '')",
            "UPDATE alembic_version SET version_num = '0006'",
        ):
            connection.execute(text(statement))

    store.database.write_now(go_back)
    store.database.migrate()
    assert store.database.read_now(lambda c: c.execute(select(builds.c.isolation)).scalar_one()) == "gvisor"


def test_a_database_of_a_later_version_is_refused(config: Config, store: Store) -> None:
    later = text("UPDATE alembic_version SET version_num = '9999'")
    store.database.write_now(lambda connection: connection.execute(later).rowcount)
    with pytest.raises(Unavailable, match="version"):
        store.database.migrate()


def test_opening_twice_keeps_what_is_there(config: Config, store: Store) -> None:
    uid = config.state_dir.stat().st_uid
    again = Store.open(config.database, owner_uid=uid)
    again.close()
    assert store.keys.list() == []


def test_only_the_owner_can_read_the_database(config: Config, store: Store) -> None:
    store.keys.list()
    assert stat.S_IMODE(config.database.parent.stat().st_mode) == 0o700
    for path in config.database.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_link_in_the_place_of_the_database_is_refused(config: Config) -> None:
    config.database.parent.mkdir(parents=True)
    config.database.symlink_to(config.state_dir / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        Store.open(config.database, owner_uid=0)
    assert not (config.state_dir / "elsewhere").exists()


def test_a_failing_transaction_leaves_nothing(store: Store) -> None:
    def work(connection: Connection) -> None:
        connection.execute(insert(teams).values(id="a", name="a", created_at=NOW))
        raise KeyError("stop")

    with pytest.raises(KeyError):
        store.database.write_now(work)
    assert store.database.read_now(count_teams) == 0


def test_the_log_is_write_ahead(config: Config, store: Store) -> None:
    with closing(sqlite3.connect(config.database)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.anyio
async def test_many_writers_at_once_all_get_their_turn(store: Store) -> None:
    async def add(number: int) -> None:
        row = insert(teams).values(id=str(number), name=str(number), created_at=NOW)
        await store.database.write(lambda connection: connection.execute(row).rowcount)

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(add, number)
    assert await store.database.read(count_teams) == 100


def test_a_file_that_is_no_database_is_an_error_of_ours(config: Config) -> None:
    config.database.parent.mkdir(parents=True)
    config.database.write_bytes(b"x" * 4096)
    with pytest.raises(Unavailable):
        Store.open(config.database, owner_uid=config.state_dir.stat().st_uid)
