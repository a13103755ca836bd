"""Remove layers that nothing needs any more."""

from __future__ import annotations

import structlog

from cloche_server.node import builds
from cloche_server.node.build_messages import Pruned, PruneLayers
from cloche_server.node.layers import PREFIX, Layer
from cloche_server.node.machine import Machine
from cloche_wire.errors import SnapshotUnusable

log = structlog.get_logger()


def prune(machine: Machine, request: PruneLayers) -> Pruned:
    """Remove the layers of no published build and of nothing that is kept, once they are old enough.

    While a sandbox or an image of one is there whose build was taken away or is being made, all stay: nobody
    knows any more, or yet, which of them it stands on. The same holds where an image cannot be read.
    """
    published = machine.templates.finished()
    needed = {*request.kept, *_named_by(machine, published)}
    records = [*(live.record for live in machine.live.values()), *machine.paused.values()]
    try:
        kept = {manifest.build_id for manifest in machine.images.manifests() if manifest.build_id}
    except SnapshotUnusable as error:
        log.warning("layers.not_pruned", error=str(error))
        return Pruned([])
    unknown = ({record.request.build_id for record in records} | kept) - published
    now = machine.clock.now()

    def is_free(layer: Layer) -> bool:
        return layer.name not in needed and (now - layer.created_at).total_seconds() >= request.older_than_s

    free = [] if unknown else [layer for layer in machine.layers.all() if is_free(layer)][: request.most]
    for layer in free if not request.dry_run else []:
        machine.layers.remove(layer.name)
    log.info("layers.pruned", count=len(free), dry_run=request.dry_run)
    return Pruned([builds.shown(layer) for layer in free])


def _named_by(machine: Machine, published: set[str]) -> set[str]:
    """Layers that a manifest names."""
    layers = (name for build_id in published for name in machine.templates.read(build_id).layers)
    return {name for name in layers if name.startswith(PREFIX)}
