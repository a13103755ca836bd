"""`cloche template`: build embedded templates, the default one ahead of the first start."""

from __future__ import annotations

import click

from cloche_server import config as configuration
from cloche_server.cli.output import explain, is_root, note, state_option
from cloche_server.isolation import syscalls
from cloche_server.templates import builder, host_settings, recipe


@click.group()
def template() -> None:
    """Build the templates that Cloche brings."""


@template.command()
@click.argument("name", type=click.Choice([known.name for known in recipe.embedded()]), default=recipe.NAME)
@state_option
def build(name: str, state: str | None) -> None:
    """Build a template where it is missing or its recipe has changed; the default one unless named."""
    with explain():
        config = configuration.load({"state": state})
        if is_root():
            # SAFETY: before the builder mounts anything; see `serve`.
            syscalls.enter_private_mounts()
        (wanted,) = (
            known for known in recipe.embedded(host_settings.extra_certificates()) if known.name == name
        )
        made = builder.ensure(config, wanted, note)
        note(f"template {made.name} ({made.template_id}) lies in {config.templates_dir / made.build_id}")
