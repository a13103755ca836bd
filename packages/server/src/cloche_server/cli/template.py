"""`cloche template`: build the default template ahead of the first start."""

from __future__ import annotations

import click

from cloche_server import config as configuration
from cloche_server.cli.output import explain, is_root, note, state_option
from cloche_server.isolation import syscalls
from cloche_server.templates import default


@click.group()
def template() -> None:
    """Build the default template."""


@template.command()
@state_option
def build(state: str | None) -> None:
    """Build `code-interpreter-v1` where it is missing or its recipe has changed."""
    with explain():
        config = configuration.load({"state": state})
        if is_root():
            # SAFETY: before the builder mounts anything; see `serve`.
            syscalls.enter_private_mounts()
        made = default.ensure(config, note)
        note(f"template {made.name} ({made.template_id}) lies in {config.templates_dir / made.build_id}")
