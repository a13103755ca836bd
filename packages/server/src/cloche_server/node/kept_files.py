"""What a sandbox has written, kept without its memory: as a layer that others lie over.

Where a driver has it as one anyway (`Capabilities.writes_layers`) no kernel of the sandbox is asked. An image
names such layers, uppermost first, and whatever is made of it has them between its template's and its own.
They are there as long as an image, a sandbox or a save under way names them; `sweep` removes the others.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import structlog

from cloche_server.isolation import overlay
from cloche_server.node import squash, threads, trees
from cloche_server.node.images import KeptLayer
from cloche_server.node.layers import KEPT_PREFIX, Layer
from cloche_server.node.machine import Live, Machine
from cloche_wire.errors import SnapshotUnusable, UnsupportedOption

MOST_KEPT = 8
"""Of one sandbox: more are made one, which costs time for each file and no copy of it. What was written over
or removed takes its room until then."""

log = structlog.get_logger()


@contextmanager
def being_made(machine: Machine) -> Generator[list[str]]:
    """Layers whose names are put into this list are not swept away before the block ends.

    None of them is left half-made after it.
    """
    names: list[str] = []
    machine.layers.being_made.append(names)
    try:
        yield names
    finally:
        machine.layers.being_made.remove(names)
        for name in names:
            machine.layers.abandon(name)


async def take(machine: Machine, live: Live, names: list[str], *, ends: bool) -> None:
    """Begin a layer of what a sandbox has written that stands still; its name is the first of `names`.

    Of one that ends afterwards the files themselves are kept, under more names; nothing is copied.

    Raises:
        TooLarge: There are more files, or deeper folders, than are kept.
        OSError: The disk is full or broken.
    """
    names.append(machine.layers.begin(KEPT_PREFIX))
    written = machine.folder(live.record.request.sandbox_id) / overlay.UPPER
    await threads.in_thread(trees.copy, written, machine.layers.begun(names[0]), by_link=ends)


async def complete(machine: Machine, live: Live, names: list[str], *, for_now: bool) -> tuple[KeptLayer, ...]:
    """Have the layer that was taken be complete, and return all that an image has to name.

    Leaves: all of them complete; with their sums, unless it is `for_now`. `Images.commit` has them on disk.

    Raises:
        UnsupportedOption: Its template is made of so many layers that there is no room for one.
        TooLarge: Together they are more than are kept.
        TemplateNotFound: The template is gone.
        OSError: The disk is full or broken.
    """
    request = live.record.request
    template = machine.templates.read(request.build_id)
    below = machine.layers.of_template(request.build_id, template)
    if len(below) >= overlay.MOST_LAYERS:
        raise UnsupportedOption(
            f"its template has {len(below)} layers, and there is no room for one of its files",
            hint="build the template in fewer steps",
        )
    chain = (names[0], *live.record.layers)
    if len(chain) > MOST_KEPT or len(chain) + len(below) > overlay.MOST_LAYERS:
        chain = (await threads.in_thread(_squash, machine, names, live.record.layers, below),)
    return await threads.in_thread(_complete, machine, request.team_id, chain, for_now=for_now)


def _squash(machine: Machine, names: list[str], kept: tuple[str, ...], below: tuple[Path, ...]) -> str:
    made = machine.layers.begin(KEPT_PREFIX)
    names.append(made)
    layers = (machine.layers.begun(names[0]), *machine.layers.folders(kept))
    squash.squash(layers, below, machine.layers.begun(made))
    log.info("files.squashed", layers=len(layers))
    return made


def _complete(
    machine: Machine, team_id: str, chain: tuple[str, ...], *, for_now: bool
) -> tuple[KeptLayer, ...]:
    machine.layers.commit(chain[0], team_id, 0, 0, is_synced=False)
    look = machine.layers.about if for_now else machine.layers.seal
    return tuple(_named(look(name)) for name in chain)


def _named(layer: Layer) -> KeptLayer:
    return KeptLayer(layer.name, layer.sha256, layer.size_bytes)


def forget(machine: Machine, image: str) -> None:
    """Remove an image, and the layers that nothing but it stands on. Idempotent."""
    machine.images.remove(image)
    sweep(machine)


def sweep(machine: Machine) -> int:
    """Remove the layers of files that nothing stands on any more; how many there were."""
    kept = machine.layers.kept()
    if not kept:
        return 0
    try:
        needed = {layer.name for manifest in machine.images.manifests() for layer in manifest.layers}
    except SnapshotUnusable as error:
        log.warning("files.not_swept", error=str(error))
        return 0
    for names in machine.layers.being_made:
        needed.update(names)
    for live in machine.live.values():
        needed.update(live.record.layers)
    for name in kept - needed:
        machine.layers.remove(name)
    return len(kept - needed)
