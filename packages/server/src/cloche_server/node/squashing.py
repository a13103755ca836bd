"""Make one layer of several, so that a chain of builds never grows past what one root can have."""

from __future__ import annotations

import structlog

from cloche_server.node import build_limits, builds, squash, threads
from cloche_server.node.build_messages import LayerMade, SquashLayers
from cloche_server.node.layer_size import measure
from cloche_server.node.layers import PREFIX
from cloche_server.node.machine import Machine
from cloche_wire.errors import InvalidArgument, NotEnoughSpace

log = structlog.get_logger()


async def squash_layers(machine: Machine, request: SquashLayers) -> LayerMade:
    """Keep a new layer that shows, over the same others, what these show; they stay as they are.

    Files get one name more and are not copied: the disk has no more of them.

    Leaves: on an error nothing of it.

    Raises:
        NotFound: One is not there.
        InvalidArgument: They are less than two, or a root of its own is among them.
        TooLarge: Together they are larger than a layer may be, or than a tree that is squashed.
        NotEnoughSpace: The disk is too full for one more.
    """
    if len(request.layers) < 2 or not all(name.startswith(PREFIX) for name in request.layers):
        raise InvalidArgument("only layers of builds can be made one, and two at least")
    try:
        made = await threads.in_thread(_make, machine, request)
    except OSError as error:
        raise NotEnoughSpace(f"cannot keep the layer: {error.strerror}") from error
    log.info("layers.squashed", layer=made.layer_id, count=len(request.layers), bytes=made.size_bytes)
    return made


def _make(machine: Machine, request: SquashLayers) -> LayerMade:
    layers, below = machine.layers.folders(request.layers), machine.layers.folders(request.below)
    build_limits.require_space(machine, "a squashed layer")
    name = machine.layers.begin()
    try:
        target = machine.layers.begun(name)
        squash.squash(layers, below, target)
        found = measure(target, max_entries=machine.config.builds.max_layer_files)
        build_limits.check(machine, found, "squashed layers of")
        layer = machine.layers.commit(name, request.team_id, found.size_bytes, found.entries)
    except BaseException:
        machine.layers.abandon(name)
        raise
    return builds.shown(layer)
