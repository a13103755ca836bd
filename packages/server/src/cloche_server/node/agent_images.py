"""Images of an agent alone: sandboxes of builds go on from one, each over its own root, and boot no kernel.

One serves every build of every team: it is made over a root of ours that has nothing but mount points, and
nobody has a way to the agent in it, nor it to a network. Until there is one, and wherever it is of no use,
sandboxes are started. See: docs/adr/0030-steps-of-builds-go-on-from-an-agent.md.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from cloche_server.node import assemble, create, kill, pause, threads
from cloche_server.node.assemble import Origin
from cloche_server.node.demand import Need
from cloche_server.node.machine import Machine
from cloche_server.node.templates import Template
from cloche_wire.errors import ClocheError, SnapshotNotFound, SnapshotUnusable

PREFIX = "agent-"
_SHAPE = 1
"""Of what it is made of; one more where older images are of no use any more."""
_MEMORY_MIB = 256
_MOST_FAILURES = 3
"""Images from which a sandbox did not come up: after so many, this process starts all of them."""
_FOLDERS = {"proc": 0o555, "tmp": 0o1777}

log = structlog.get_logger()


async def over(machine: Machine, origin: Origin, isolation: str) -> Origin:
    """An origin that keeps its layer, to go on from the image where that can be; else as it is.

    Where the image is missing or damaged it is made beside.

    Raises:
        UnsupportedOption: This machine lacks that isolation.
    """
    driver = machine.drivers.ready(isolation)
    able = driver.capabilities()
    if not able.memory_snapshot or machine.agent_failures >= _MOST_FAILURES:
        return origin
    if not await threads.in_thread(driver.goes_on_over, origin.layers):
        return origin
    name = _name(machine, isolation)
    try:
        image, manifest = await machine.images.open(name, able.image_format, checked_before=True)
    except (SnapshotNotFound, SnapshotUnusable) as error:
        if isinstance(error, SnapshotUnusable):
            log.warning("agent_image.unusable", error=str(error))
            machine.images.remove(name)
        machine.demand.note_build(isolation)
        return origin
    return origin._replace(image=image, shows_boot_id=manifest.shows_boot_id)


def refuse(machine: Machine, isolation: str, error: ClocheError) -> None:
    """A sandbox did not come up from the image: it goes, and is made again with the next build."""
    name = _name(machine, isolation)
    log.warning("agent_image.refused", error=str(error))
    if name in machine.images:  # several may find that out at once
        machine.agent_failures += 1
        machine.images.remove(name)


def is_missing(machine: Machine, isolation: str) -> bool:
    """Whether builds of an isolation, which is ready, could use one and there is none."""
    return machine.agent_failures < _MOST_FAILURES and _name(machine, isolation) not in machine.images


async def make(machine: Machine, isolation: str) -> bool:
    """Start an agent over a root of ours, keep its image in place of older ones, and end it.

    Returns whether the image is there now. Nothing else of it is left.
    """
    request = Need("", "", 1, _MEMORY_MIB, isolation).nobodys()
    name = _name(machine, isolation)
    began_s = machine.clock.boot_s()
    try:
        root = await threads.in_thread(_root, machine)
        origin = Origin(Template(rootfs="", default_user="root"), (root,), machine.tree.path)
        live = create.first_live(machine, request)
        live.record = msgspec.structs.replace(live.record, is_build=True)
        async with create.making(machine, live):
            await assemble.assemble(machine, live, origin, keeps_layer=True)
            await assemble.until_up(machine, live)
            saved = await pause.save(machine, live, name, with_memory=True, thaws=False)
    except (ClocheError, OSError) as error:
        log.warning("agent_image.failed", error=str(error))
        return False
    await kill.end(machine, request.sandbox_id, "killed")
    for other in machine.images.names() - {name}:
        if other.startswith(_prefix(isolation)):
            machine.images.remove(other)
    took_ms = round(1000 * (machine.clock.boot_s() - began_s))
    log.info("agent_image.made", ms=took_ms, bytes=saved.manifest.size_bytes)
    return True


def _prefix(isolation: str) -> str:
    return f"{PREFIX}{isolation}-"


def _name(machine: Machine, isolation: str) -> str:
    """The name of the image for what runs here. Requires: the driver is ready."""
    return f"{_prefix(isolation)}{assemble.image_key(machine, isolation, _SHAPE)}"


def _root(machine: Machine) -> Path:
    """What it is made over: a layer with folders that every root has, in the same place for each.

    Raises:
        OSError: The disk is full.
    """
    root = machine.config.journal_dir.with_name("agent-root")
    root.mkdir(mode=0o755, exist_ok=True)
    root.chmod(0o755)
    for name, mode in _FOLDERS.items():
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    return root
