"""`cloche key`: the keys that clients show."""

import contextlib
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from typing import Any

import click

from cloche_server.config import load
from cloche_server.store.first_key import open_as_operator
from cloche_server.store.keys import DEFAULT_TEAM, Keys
from cloche_wire.errors import ClocheError

_state: Callable[[Any], Any] = click.option(
    "--state", type=click.Path(file_okay=False), help="Folder that holds the server's state."
)


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command()
@click.argument("name")
@click.option(
    "--team", default=DEFAULT_TEAM, show_default=True, help="Team it stands for; made when it is new."
)
@_state
def create(name: str, team: str, state: str | None) -> None:
    """Make a key called NAME and print it: it is shown this once."""
    with _keys(state) as keys:
        made, value = keys.create(name, team, datetime.now(UTC))
    click.echo(value)
    click.echo(f"{made.id}: keep it now, it is stored as a hash only", err=True)


@key.command(name="list")
@_state
def list_keys(state: str | None) -> None:
    """List the keys, revoked ones too."""
    with _keys(state) as keys:
        found = keys.list()
    rows = [["ID", "KEY", "NAME", "TEAM", "CREATED", "LAST USED", "REVOKED"]]
    for one, team in found:
        times = [_shown(time) for time in (one.created_at, one.last_used, one.revoked_at)]
        rows.append([one.id, one.mask, one.name, team, *times])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@key.command()
@click.argument("key_id")
@_state
def revoke(key_id: str, state: str | None) -> None:
    """End the key with this ID: the next request with it is refused."""
    with _keys(state) as keys:
        if not keys.revoke(key_id, datetime.now(UTC)):
            raise click.ClickException(f"no such key in use: {key_id} (see `cloche key list`)")
    click.echo(f"{key_id} is revoked")


@contextlib.contextmanager
def _keys(state: str | None) -> Generator[Keys]:
    try:
        config = load({"state": state})
        if not config.database.exists():
            raise click.ClickException(f"no server has been started with state folder {config.state} yet")
        store = open_as_operator(config)
        try:
            yield store.keys
        finally:
            store.close()
    except PermissionError as error:
        raise click.ClickException(f"{error.strerror}: {error.filename} (run it as root)") from error
    except ClocheError as error:
        raise click.ClickException(str(error)) from error


def _shown(time: datetime | None) -> str:
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M")
