"""Open and close families: start the zygote of what is asked for, end what nobody asks for any more.

See: design 3.3; security specification 2.8.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from secrets import token_hex

import structlog

from cloche_server.isolation.base import FamilySpec, ResourceLimits
from cloche_server.node import assemble
from cloche_server.node.families import Kept, Kind
from cloche_server.node.machine import Machine
from cloche_wire.errors import ClocheError

_LIMITS = ResourceLimits(cpu_count=2, memory_mib=1024, pids=64)
"""Of a zygote, and of its forks until they are in their sandbox's groups."""
_ENV = {
    "PATH": assemble.AGENT_PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    # Threads do not go along in a fork, and the locks that they hold would be held for good.
    "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    # So long its threads spin for work, as binary logarithm of cycles: 0.1 ms. A fork makes them anew, for
    # all of its processors, and by themselves they spun for 87 ms of one, beside the fork's first cell.
    "OPENBLAS_THREAD_TIMEOUT": "18",
}  # fmt: skip

log = structlog.get_logger()


async def open_family(machine: Machine, kind: Kind) -> bool:
    """Start a zygote for sandboxes of that kind; whether one is there. Nothing of it is left where not."""
    slots = machine.families.reserve()
    if not slots:
        return False
    family_id, driver = f"zygote-{token_hex(8)}", machine.drivers.of(kind.isolation)
    folder = machine.folder(family_id)
    began_s = machine.clock.boot_s()
    family = None
    try:
        template = machine.templates.read(kind.build_id)
        folder.mkdir(mode=0o700)
        spec = FamilySpec(
            family_id=family_id,
            slots=tuple(map(machine.block.machine_slot, slots)),
            layers=machine.layers.of_template(kind.build_id, template),
            folder=folder,
            runtime_tree=machine.tree.path,
            limits=_LIMITS,
            argv=machine.tree.zygote(template.warm),
            env=_ENV,
        )
        family = await driver.open_family(spec)
    except (ClocheError, OSError) as error:
        log.warning("zygote.failed", build_id=kind.build_id, error=str(error))
    finally:
        if family is None:
            await driver.destroy(family_id, folder, None)
            machine.trash.put(folder)
            machine.families.give_back(slots)
    if family is None:
        return False
    kept = Kept(kind, family_id, folder, slots[0], deque(slots[1:]), family, began_s)
    machine.families.add(kept)
    machine.tasks.create_task(_close_after_end(machine, kept))
    took_ms = round(1000 * (machine.clock.boot_s() - began_s))
    log.info("zygote.ready", build_id=kind.build_id, family=family_id, ms=took_ms)
    return True


async def _close_after_end(machine: Machine, kept: Kept) -> None:
    await machine.drivers.of(kept.kind.isolation).wait(kept.family.init)
    if kept in machine.families.kept:
        log.warning("zygote.ended", build_id=kept.kind.build_id, family=kept.family_id)
    await close(machine, kept)
    machine.demand.changed.set()


async def close(machine: Machine, kept: Kept) -> None:
    """End a zygote; the sandboxes of its family go on, and start interpreters of their own. Idempotent."""
    if not machine.families.remove(kept):
        return
    driver = machine.drivers.of(kept.kind.isolation)
    await driver.destroy(kept.family_id, kept.folder, kept.family.init)
    lives = [live for live in machine.live.values() if live.family is kept.family]
    if builders := {live.builder for live in lives if live.builder is not None}:
        await asyncio.wait(builders)  # they still use its namespaces
    kept.family.close()
    machine.trash.put(kept.folder)
    # SAFETY: only now, since until it had ended it could take on the ids of these slots.
    machine.families.give_back((kept.own_slot, *kept.slots))


async def close_unused(machine: Machine, wanted: Collection[Kind]) -> None:
    """End the zygotes that nobody asks for, and those that a fresh one has taken the place of."""
    for kept in machine.families.unused(wanted, machine.clock.boot_s()):
        log.info(
            "zygote.retired", build_id=kept.kind.build_id, family=kept.family_id, sandboxes=kept.sandboxes
        )
        await close(machine, kept)


async def close_all(machine: Machine) -> None:
    """End every zygote, as the node ends."""
    async with asyncio.TaskGroup() as tasks:
        for kept in machine.families.kept:
            tasks.create_task(close(machine, kept))
