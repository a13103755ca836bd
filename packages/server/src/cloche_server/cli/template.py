"""`cloche template`: build, list, inspect and delete templates; remove what no build needs any more."""

from __future__ import annotations

import asyncio
import re
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click
import msgspec

from cloche_server import config as configuration
from cloche_server import link
from cloche_server.api.layer_collection import Collector
from cloche_server.cli.output import explain, is_root, note, state_option
from cloche_server.cli.remote import Remote
from cloche_server.isolation import syscalls
from cloche_server.node import warm_images
from cloche_server.node.build_messages import LayerMade
from cloche_server.node.layers import Layers
from cloche_server.node.templates import Template, Templates
from cloche_server.store.first_key import open_as_operator
from cloche_server.templates import builder, host_settings, manifest, recipe
from cloche_server.templates.dockerfile.translate import Translated
from cloche_server.templates.node_workshop import NodeWorkshop
from cloche_server.templates.workshop import Pruned
from cloche_wire.errors import DeadlineExceeded, InvalidArgument, NotFound

if TYPE_CHECKING:
    from cloche_server.config import Config

_NODE_TIMEOUT_S = 600.0
T = TypeVar("T")
_EMBEDDED = tuple(known.name for known in recipe.embedded())


@click.group()
def template() -> None:
    """Build, list, inspect and delete templates."""


@template.command()
@click.argument("what", default=recipe.NAME, metavar="[PATH|NAME]")
@click.option("--name", "-n", default="", help="Name of the template, maybe with `:tag`; else the folder's.")
@click.option("--tag", "-t", "tags", multiple=True, help="One more tag that leads to this build.")
@click.option("--file", "-f", "file", default="", help="The Dockerfile's name in the folder.")
@click.option(
    "--cmd", "-c", "start_cmd", default="", help="Start command: runs in each sandbox from its start."
)
@click.option("--ready-cmd", default="", help="Succeeds when the start command is ready.")
@click.option("--cpu-count", type=int, help="CPUs of its sandboxes.  [default: 2]")
@click.option("--memory-mb", type=int, help="Memory of its sandboxes in MiB.  [default: 1024]")
@click.option("--build-arg", "build_args", multiple=True, metavar="NAME=VALUE", help="Value of an ARG.")
@click.option("--target", default="", help="The stage to stop at; else the last one.")
@click.option("--no-cache", is_flag=True, help="Run every step, also where its result is known.")
@click.option(
    "--preload", multiple=True, metavar="MODULE", help="A Python module that sandboxes have imported already."
)
@click.option("--isolation", default="", help="`container` or `gvisor`, for its steps and its sandboxes.")
@click.option("--python", default="", help="The interpreter that runs a template's Python file.")
@state_option
def build(what: str, file: str, python: str, state: str | None, **wishes: Any) -> None:  # noqa: ANN401 -- click's options
    """Build a template: of a folder's Dockerfile, of a Python file, or one that Cloche brings by its name.

    Without an argument it is the default template, where that is missing or its recipe has changed.
    """
    with explain():
        if what in _EMBEDDED and not Path(what).is_dir():
            _build_embedded(what, state)
            return
        _build_described(Path(what), file, python, state, wishes)


def _build_embedded(name: str, state: str | None) -> None:
    config = configuration.load({"state": state})
    if is_root():
        # SAFETY: before the builder mounts anything; see `serve`.
        syscalls.enter_private_mounts()
    certificates = host_settings.extra_certificates()
    (wanted,) = (known for known in recipe.embedded(certificates) if known.name == name)
    made = builder.ensure(config, wanted, note)
    note(f"template {made.name} ({made.template_id}) lies in {config.templates_dir / made.build_id}")


def _build_described(path: Path, file: str, python: str, state: str | None, wishes: dict[str, Any]) -> None:
    from rich.console import Console  # drawn in by this command alone

    from cloche_server.cli import template_build, template_python

    if not path.exists():
        hint = f"a folder with a Dockerfile, a Python file, or one of: {', '.join(_EMBEDDED)}"
        raise NotFound(f"no such folder: {path}", hint=hint)
    console = Console(soft_wrap=True)
    wish = template_build.Wish(wishes.pop("name"), memory_mib=wishes.pop("memory_mb"), **wishes)
    with tempfile.TemporaryDirectory(prefix="cloche-build-") as scratch:
        if path.suffix == ".py":
            translated, said = template_python.read(path, Path(scratch), python)
            wish = wish._replace(
                name=wish.name or said.name,
                cpu_count=wish.cpu_count or said.cpu_count,
                memory_mib=wish.memory_mib or said.memory_mib,
            )
        else:
            path = path if path.is_file() else template_build.find_dockerfile(path, file)
            translated = template_build.of_dockerfile(path, Path(scratch), wish)
        folder_name = re.sub(r"[^a-z0-9_-]+", "-", path.absolute().parent.name.lower())
        wish = wish._replace(name=wish.name or folder_name)
        made = template_build.build(Remote.of(state), translated, wish, console)
    console.print(f"template [bold]{wish.name}[/] ({made.template_id}) is ready, took {made.took_s:.1f} s")


@template.command(name="list")
@state_option
def list_templates(state: str | None) -> None:
    """List the templates that the key's team may use."""
    with explain():
        found = Remote.of(state).ask("GET", "/templates")
    rows = [["ID", "NAME", "CPUS", "MEMORY", "BUILDS", "STATUS", "PUBLIC", "UPDATED"]]
    for one in found:
        memory = f"{one['memoryMB']} MiB"
        shown = [one["templateID"], one["names"][0], str(one["cpuCount"]), memory, str(one["buildCount"])]
        rows.append([*shown, one["buildStatus"], "yes" if one["public"] else "no", one["updatedAt"][:16]])
    _print_table(rows)


@template.command()
@click.argument("name")
@state_option
def inspect(name: str, state: str | None) -> None:
    """Show a template and its builds; on the server's machine, as root, also what it is made of.

    That is its layers and their sizes, what its sandboxes begin with, and the image that they go on from.
    """
    with explain():
        found = Remote.of(state).ask("GET", f"/templates/{quote(name, safe='')}")
        note(f"template  {found['names'][0]} ({found['templateID']})")
        note(f"size      {found['cpuCount']} CPUs, {found['memoryMB']} MiB")
        note(f"public    {'yes' if found['public'] else 'no'}")
        note(f"isolation {found['isolation']}")
        note("")
        builds = [[b["buildID"], b["status"], b["createdAt"][:16]] for b in found["builds"]]
        _print_table([["BUILD", "STATUS", "REQUESTED"], *builds])
        config = configuration.load({"state": state})
        if is_root() and (config.templates_dir / found["buildID"]).is_dir():
            _print_layers(config, found["buildID"])


def _print_layers(config: Config, build_id: str) -> None:
    made = manifest.read(config.templates_dir / build_id / manifest.MANIFEST_NAME)
    known = {layer.layer_id: layer for layer in asyncio.run(_ask_node(config, "layers", {}, list[LayerMade]))}
    note("")
    rows = [["LAYER, UPPERMOST FIRST", "ENTRIES", "MIB"]]
    for name in made.layer_names:
        layer = known.get(name)
        sizes = (
            [str(layer.entries), f"{layer.size_bytes / (1 << 20):.1f}"]
            if layer
            else ["", "a root of its own"]
        )
        rows.append([name, *sizes])
    _print_table(rows)
    note("")
    note(f"user      {made.default_user} in {made.default_workdir or 'its home'}")
    note(f"start     {made.start_cmd or '-'}")
    note(f"ready     {made.ready_cmd or '-'}")
    note(f"preloaded {', '.join(made.warm) or '-'}")
    note(f"image     {_warm_image(config, build_id)}")
    for warning in made.warnings:
        note(f"warning   {warning}")


def _warm_image(config: Config, build_id: str) -> str:
    """What there is of the image that sandboxes of a build go on from, where their isolation can."""
    images = config.state_dir / "images"
    found = [path for path in images.glob(f"{warm_images.PREFIX}{build_id}-*") if path.suffix != ".new"]
    if not found:
        return "- (sandboxes start)"
    size = sum(file.stat().st_size for path in found for file in path.iterdir())
    return f"{size / (1 << 20):.1f} MiB, which new sandboxes go on from"


@template.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@state_option
def delete(name: str, state: str | None, *, yes: bool) -> None:
    """Delete a template of the key's team with all its builds."""
    if not yes:
        click.confirm(f"Delete the template {name} with all its builds?", abort=True)
    with explain():
        Remote.of(state).ask("DELETE", f"/templates/{quote(name, safe='')}")
    note(f"{name} is deleted")


@template.command()
@click.argument("name")
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False), help="The file to write.")
@state_option
def export(name: str, output: str, state: str | None) -> None:
    """Write a template with all its layers to one file; on the server's machine, as root."""
    from cloche_server.cli import template_export

    with explain():
        if not is_root():
            raise InvalidArgument("only root reads the layers of templates", hint="run it with sudo")
        config = configuration.load({"state": state})
        build_id = str(Remote.of(state).ask("GET", f"/templates/{quote(name, safe='')}")["buildID"])
        made = manifest.read(config.templates_dir / build_id / manifest.MANIFEST_NAME)
        layers = Layers(config.state_dir / "layers", Templates(config.templates_dir), lambda _: None)
        described = msgspec.convert(made, Template, from_attributes=True)
        written = template_export.export(made, layers.of_template(build_id, described), Path(output))
        note(f"{output}: {written.layers} layers, {written.size_bytes / (1 << 20):.1f} MiB")


@template.command(name="import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--name", "-n", default="", help="What it is called here; else as it was.")
@state_option
def import_template(file: str, name: str, state: str | None) -> None:
    """Make a template of a file that `export` has written: whole, or not at all."""
    from rich.console import Console

    from cloche_server.cli import template_build, template_import

    with explain(), template_import.opened(Path(file)) as archive:
        about, remote = archive.about, Remote.of(state)
        wish = template_build.Wish(name or about.name, cpu_count=about.cpu_count, memory_mib=about.memory_mib)
        console = Console(soft_wrap=True)
        translated = Translated(template_import.description(about), ())
        send = partial(template_import.send_layers, remote, archive=archive)
        made = template_build.build(remote, translated, wish, console, send)
        console.print(
            f"template [bold]{wish.name}[/] ({made.template_id}) is ready, took {made.took_s:.1f} s"
        )


@template.command()
@click.argument("name")
@state_option
def pin(name: str, state: str | None) -> None:
    """Have what a template is made of, and can be built again from, stay however long nobody uses it."""
    _set_pinned(name, state, is_pinned=True)


@template.command()
@click.argument("name")
@state_option
def unpin(name: str, state: str | None) -> None:
    """Let go of a template that was pinned: what nobody uses goes in time."""
    _set_pinned(name, state, is_pinned=False)


def _set_pinned(name: str, state: str | None, *, is_pinned: bool) -> None:
    with explain():
        Remote.of(state).ask("PATCH", f"/v2/templates/{quote(name, safe='')}", {"pinned": is_pinned})
    note(f"{name} is {'' if is_pinned else 'not '}pinned")


@template.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@state_option
def prune(state: str | None, *, dry_run: bool) -> None:
    """Remove layers that no template and no sandbox needs, and no build has asked for lately."""
    with explain():
        config = configuration.load({"state": state})
        removed = asyncio.run(_prune(config, dry_run=dry_run))
    _print_table([[name, f"{size / (1 << 20):.1f} MiB"] for name, size in removed.layers.items()])
    verb = "would be" if dry_run else "were"
    note(f"{len(removed.layers)} layers {verb} removed: {removed.size_bytes / (1 << 20):.1f} MiB")


async def _ask_node(config: Config, method: str, params: object, answer: type[T]) -> T:
    try:
        return await link.call(config.node_socket, method, params, answer, timeout_s=_NODE_TIMEOUT_S)
    except TimeoutError as error:
        raise DeadlineExceeded("the node has not answered in time") from error


async def _prune(config: Config, *, dry_run: bool) -> Pruned:
    if not is_root():
        raise InvalidArgument("only root speaks to the node", hint="run it with sudo")
    store = open_as_operator(config)
    try:
        collector = Collector(config, store, NodeWorkshop(config.node_socket))
        return await collector.collect(datetime.now(UTC), dry_run=dry_run)
    finally:
        store.close()


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        note("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
