"""Images of agents that are nobody's yet, one for each template: what goes on from one starts nothing.

Until there is one, sandboxes are started; where none can be made they always are. See: `warming`.
"""

from __future__ import annotations

import hashlib

import structlog

from cloche_server.node import assemble
from cloche_server.node.assemble import Origin
from cloche_server.node.machine import Machine
from cloche_wire.errors import SnapshotNotFound, SnapshotUnusable

PREFIX = "warm-"

log = structlog.get_logger()


def name_of(machine: Machine, build_id: str, isolation: str) -> str:
    """The name of the image for a build, and for what it runs on here.

    Requires: the driver is ready.

    Raises:
        TemplateNotFound: No finished build of that id lies here.
    """
    template = machine.templates.read(build_id)
    image_format = machine.drivers.of(isolation).capabilities().image_format
    runs_on = machine.tree.path.name, image_format, *template.warm, template.start_cmd, template.ready_cmd
    return f"{PREFIX}{build_id}-{hashlib.sha256(repr(runs_on).encode()).hexdigest()[:16]}"


async def origin(machine: Machine, build_id: str, isolation: str) -> Origin:
    """What a new sandbox of a build is made of: its image where there is one.

    Raises:
        TemplateNotFound: No finished build of that id lies here.
        UnsupportedOption: This machine lacks that isolation.
    """
    started = assemble.from_template(machine, build_id)
    if not machine.drivers.ready(isolation).capabilities().memory_snapshot:
        return started
    name = name_of(machine, build_id, isolation)
    try:
        return await assemble.from_image(machine, name, isolation, checked_before=True)
    except SnapshotNotFound:
        return started
    except SnapshotUnusable as error:
        log.warning("warm_image.unusable", build_id=build_id, error=str(error))
        machine.images.remove(name)
        return started
