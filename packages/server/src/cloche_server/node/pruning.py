"""Remove layers that nothing needs any more."""

from __future__ import annotations

import msgspec
import structlog

from cloche_server.node import builds
from cloche_server.node.build_messages import Pruned, PruneLayers
from cloche_server.node.layers import PREFIX, Layer
from cloche_server.node.machine import Machine
from cloche_server.node.templates import Template

log = structlog.get_logger()


def prune(machine: Machine, request: PruneLayers) -> Pruned:
    """Remove the layers of no published build and of nothing that is kept, once they are old enough.

    While a sandbox is there, running or paused, whose build was taken away or is being made, all stay: nobody
    knows any more, or yet, which of them it stands on.
    """
    needed = {*request.kept, *_published(machine)}
    records = [*(live.record for live in machine.live.values()), *machine.paused.values()]
    unknown = {record.request.build_id for record in records} - _builds(machine)
    now = machine.clock.now()

    def is_free(layer: Layer) -> bool:
        return layer.name not in needed and (now - layer.created_at).total_seconds() >= request.older_than_s

    free = [] if unknown else [layer for layer in machine.layers.all() if is_free(layer)]
    for layer in free if not request.dry_run else []:
        machine.layers.remove(layer.name)
    log.info("layers.pruned", count=len(free), dry_run=request.dry_run)
    return Pruned([builds.shown(layer) for layer in free], sum(layer.size_bytes for layer in free))


def _builds(machine: Machine) -> set[str]:
    return {path.parent.name for path in machine.config.templates_dir.glob("[!.]*/manifest.json")}


def _published(machine: Machine) -> set[str]:
    """Layers that a manifest names."""
    found: set[str] = set()
    for path in machine.config.templates_dir.glob("[!.]*/manifest.json"):
        template = msgspec.json.decode(path.read_bytes(), type=Template)
        found.update(name for name in template.layers if name.startswith(PREFIX))
    return found
