"""Make one layer of several, so that a chain of builds never grows past what one root can have."""

from __future__ import annotations

import structlog

from cloche_server import disk_space
from cloche_server.node import builds, layer_merge, threads
from cloche_server.node.build_messages import LayerMade, SquashLayers
from cloche_server.node.layer_size import measure
from cloche_server.node.layers import PREFIX
from cloche_server.node.machine import Machine
from cloche_wire.errors import InvalidArgument, NotEnoughSpace, TooLarge

log = structlog.get_logger()


async def squash(machine: Machine, request: SquashLayers) -> LayerMade:
    """Keep a new layer that shows, over the same others, what these show; they stay as they are.

    Leaves: on an error nothing of it.

    Raises:
        NotFound: One is not there.
        InvalidArgument: They are less than two, or a root of its own is among them.
        TooLarge: Together they are larger than a layer may be.
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
    folders = machine.layers.folders(request.layers)
    known = {layer.name: layer for layer in machine.layers.all()}
    size_bytes = sum(known[name].size_bytes for name in request.layers if name in known)
    if size_bytes > request.max_bytes:
        raise TooLarge(
            f"layers of {size_bytes >> 20} MiB together are larger than one may be",
            hint=f"at most {request.max_bytes >> 20} MiB",
        )
    disk_space.require(machine.config.state_dir, builds.LEAST_FREE_BYTES + size_bytes, "a squashed layer")
    name = machine.layers.begin()
    try:
        target = machine.layers.begun(name)
        layer_merge.merge(folders, target)
        found = measure(target, max_entries=builds.MOST_ENTRIES)
        if not found.is_whole:
            raise TooLarge(f"the layers have more than {builds.MOST_ENTRIES} entries together")
        layer = machine.layers.commit(name, request.team_id, found.size_bytes, found.entries)
    except BaseException:
        machine.layers.abandon(name)
        raise
    return builds.shown(layer)
