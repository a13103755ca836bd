"""Images of agents that are nobody's yet, one for each template: what goes on from one starts nothing.

Until there is one, sandboxes are started; where none can be made they always are. See: `warming`.
"""

from __future__ import annotations

import structlog

from cloche_server.node import assemble
from cloche_server.node.assemble import Origin
from cloche_server.node.machine import Machine
from cloche_server.node.templates import Template
from cloche_wire.errors import SnapshotNotFound, SnapshotUnusable

PREFIX = "warm-"
_SHAPE = 4
"""Of what sandboxes are made of beside their template; one more where older images are of no use any more."""

log = structlog.get_logger()


def name_of(machine: Machine, build_id: str, isolation: str) -> str:
    """The name of the image for a build, and for what it runs on here.

    Requires: the driver is ready.

    Raises:
        TemplateNotFound: No finished build of that id lies here.
    """
    return name_for(machine, build_id, machine.templates.read(build_id), isolation)


def name_for(machine: Machine, build_id: str, template: Template, isolation: str) -> str:
    """The same for a build that may not be finished yet, of this template."""
    runs = *template.warm, template.start_cmd, template.ready_cmd
    return f"{PREFIX}{build_id}-{assemble.image_key(machine, isolation, _SHAPE, *runs)}"


def remove_of(machine: Machine, build_id: str) -> None:
    """Remove the images of a build. Idempotent."""
    for name in machine.images.names():
        if name.startswith(f"{PREFIX}{build_id}-"):
            machine.images.remove(name)


def is_of_none(machine: Machine, name: str) -> bool:
    """Whether an image is one of a build that is not there any more."""
    return name.startswith(PREFIX) and not any(
        name.startswith(f"{PREFIX}{build_id}-") for build_id in machine.templates.finished()
    )


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
