"""`cloche doctor`: a line for each prerequisite, and what to do about the missing ones."""

from __future__ import annotations

import sys

import click
import msgspec

from cloche_server import config as configuration
from cloche_server.cli import checks
from cloche_server.cli.output import explain, state_option


@click.command()
@state_option
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects instead.")
def doctor(*, state: str | None, as_json: bool) -> None:
    """Say what this machine has and lacks; exit with 1 where sandboxes cannot run."""
    with explain():
        found = checks.run(configuration.load({"state": state}))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            mark = click.style("ok  ", fg="green") if check.ok else click.style("FAIL", fg="red")
            click.echo(f"{mark}  {check.name:<{width}}  {check.detail}")
            if check.hint:
                click.echo(f"      {'':<{width}}  hint: {check.hint}")
    healthy = all(check.ok for check in found if check.name in checks.CONTAINER)
    if not as_json:
        click.echo(f"isolation container: {'healthy' if healthy else 'not available on this machine'}")
    sys.exit(0 if healthy else 1)
