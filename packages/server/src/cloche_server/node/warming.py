"""Make the image that sandboxes of a template go on from."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from cloche_server.node import assemble, create, kill, pause, warm_images
from cloche_server.node.assemble import Origin
from cloche_server.node.demand import Need
from cloche_server.node.machine import Machine
from cloche_wire.errors import ClocheError

log = structlog.get_logger()


def is_missing(machine: Machine, need: Need) -> bool:
    """Whether this node could make one for that, and has none.

    Raises:
        TemplateNotFound: No finished build of that id lies here.
    """
    able = machine.drivers.of(need.isolation).capabilities().memory_snapshot
    return able and warm_images.name_of(machine, need.build_id, need.isolation) not in machine.images


async def make(
    machine: Machine, need: Need, only_waits: Callable[[], None], origin: Origin | None = None
) -> bool:
    """Start a sandbox that is nobody's, have its interpreter import the usual, keep its image, and end it.

    Args:
        machine: Where.
        need: Of which template, by its build, and with which isolation.
        only_waits: Called when nothing is left to do but to wait for the start command, and to save.
        origin: What the template's sandboxes are made of, of a build that is not finished.

    Returns whether the image is there now. Nothing else of it is left.
    """
    request = need.nobodys()
    began_s = machine.clock.boot_s()
    try:
        origin = origin or assemble.from_template(machine, need.build_id)
        name = warm_images.name_for(machine, need.build_id, origin.template, need.isolation)
        live = create.first_live(machine, request)
        async with create.making(machine, live):
            await assemble.assemble(machine, live, origin)
            await assemble.warm_up(machine, live, origin)
            only_waits()
            await assemble.until_ready(machine, live, origin)
            saved = await pause.save(machine, live, name, with_memory=True, thaws=False)
    except (ClocheError, OSError) as error:
        log.warning("warm_image.failed", build_id=need.build_id, error=str(error))
        return False
    await kill.end(machine, request.sandbox_id, "killed")
    took_ms = round(1000 * (machine.clock.boot_s() - began_s))
    log.info("warm_image.made", build_id=need.build_id, ms=took_ms, bytes=saved.manifest.size_bytes)
    return True
