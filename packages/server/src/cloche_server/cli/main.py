"""The `cloche` command: each verb is a module of its own, imported only when it is called."""

from __future__ import annotations

import importlib

import click

VERBS: dict[str, tuple[str, str]] = {
    "serve": ("cloche_server.cli.serve:serve", "Run the server until Ctrl-C or `cloche down`."),
    "down": ("cloche_server.cli.down:down", "End the server and all its sandboxes."),
    "doctor": ("cloche_server.cli.doctor:doctor", "Say what this machine has and lacks."),
    "quickstart": ("cloche_server.cli.quickstart:quickstart", "Run a first program in a sandbox."),
    "env": ("cloche_server.cli.env:env", "Print the environment that points E2B clients here."),
    "key": ("cloche_server.cli.key:key", "Create, list and revoke API keys."),
    "tls": ("cloche_server.cli.tls:tls", "Make or bring the certificate for the names of sandboxes."),
    "template": ("cloche_server.cli.template:template", "Build the default template."),
    "bench": ("cloche_server.cli.bench:bench", "Measure this server against its promises."),
}
"""Verb -> where it is, and what it does, so that the list of commands needs no import."""


class _Verbs(click.Group):
    """A group whose commands are imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cloche-server", prog_name="cloche")
def cli() -> None:
    """Run AI-generated code safely on your own Linux machine, with the API that E2B clients speak."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script."""
    cli.main(args=arguments, prog_name="cloche")


if __name__ == "__main__":
    main()
