"""Keys: hashed, masked, revocable; the first one."""

import os
import sqlite3
import stat
from contextlib import closing

import pytest
from click.testing import CliRunner
from tests.fakes.clock import FakeClock

from cloche_server.cli.key import key as key_commands
from cloche_server.config import Config
from cloche_server.store.first_key import ensure_first_key
from cloche_server.store.store import Store


def key_file(config: Config) -> str:
    return (config.state_dir / "api-key").read_text().strip()


def statement_dump(config: Config) -> str:
    with closing(sqlite3.connect(config.database)) as connection:
        return "\n".join(connection.iterdump())


@pytest.mark.anyio
async def test_a_key_is_known_by_its_hash_only(config: Config, store: Store, clock: FakeClock) -> None:
    made, key = store.keys.create("mine", "default", clock.now())
    known = await store.keys.authenticate(key)
    assert known is not None
    assert (known.id, known.team_name) == (made.id, "default")
    assert made.mask == f"{key[:6]}...{key[-4:]}"
    assert key not in statement_dump(config)
    assert await store.keys.authenticate(key[:-1]) is None


@pytest.mark.anyio
async def test_a_revoked_key_is_unknown(store: Store, clock: FakeClock) -> None:
    made, key = store.keys.create("mine", "default", clock.now())
    assert store.keys.revoke(made.id, clock.now())
    assert not store.keys.revoke(made.id, clock.now())
    assert await store.keys.authenticate(key) is None


def test_keys_of_one_team_share_it(store: Store, clock: FakeClock) -> None:
    teams = {store.keys.create(name, "a", clock.now())[0].team_id for name in ("x", "y")}
    assert len(teams) == 1
    assert store.keys.create("z", "b", clock.now())[0].team_id not in teams


def test_the_first_start_makes_one_key_and_keeps_it_for_root(config: Config) -> None:
    key = ensure_first_key(config)
    assert key is not None
    assert key_file(config) == key
    assert stat.S_IMODE((config.state_dir / "api-key").stat().st_mode) == 0o600
    assert ensure_first_key(config) is None
    assert key_file(config) == key


def test_a_start_that_was_killed_before_the_row_takes_over_the_files_key(config: Config) -> None:
    kept = "e2b_" + "0123456789" * 4
    (config.state_dir / "api-key").write_text(kept + "\n")
    assert ensure_first_key(config) == kept


def test_a_start_that_was_killed_in_the_middle_of_the_file_makes_another(config: Config) -> None:
    (config.state_dir / "api-key.new").write_text("e2b_01")
    (config.state_dir / "api-key").write_text("")
    key = ensure_first_key(config)
    assert key is not None
    assert key_file(config) == key


def test_a_revoked_first_key_does_not_come_back(config: Config, clock: FakeClock) -> None:
    ensure_first_key(config)
    store = Store.open(config.database, owner_uid=os.geteuid())
    store.keys.revoke(store.keys.list()[0][0].id, clock.now())
    store.close()
    assert ensure_first_key(config) is None


def test_the_commands_make_list_and_revoke(config: Config) -> None:
    ensure_first_key(config)
    run = CliRunner()
    state = ["--state", config.state]
    made = run.invoke(key_commands, ["create", "ci", *state])
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert key.startswith("e2b_")
    listed = run.invoke(key_commands, ["list", *state]).stdout
    assert f"{key[:6]}...{key[-4:]}" in listed
    assert key not in listed
    key_id = listed.splitlines()[2].split()[0]
    assert run.invoke(key_commands, ["revoke", key_id, *state]).exit_code == 0
    again = run.invoke(key_commands, ["revoke", key_id, *state])
    assert again.exit_code == 1
    assert "no such key" in again.stderr


def test_the_commands_say_when_there_is_no_server_yet(config: Config) -> None:
    answer = CliRunner().invoke(key_commands, ["list", "--state", config.state])
    assert answer.exit_code == 1
    assert "no server has been started" in answer.stderr
