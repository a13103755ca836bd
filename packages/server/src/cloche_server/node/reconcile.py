"""What the node does first: make the journal, the kernel and the disk agree again, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import NamedTuple

import msgspec
import structlog

from cloche_server.node import (
    agent_images,
    freezing,
    kept_files,
    kill,
    pause,
    resume,
    snapshots,
    threads,
    warm_images,
)
from cloche_server.node.journal import Record
from cloche_server.node.machine import Live, Machine
from cloche_wire.errors import Internal, Unavailable, UnsupportedOption

log = structlog.get_logger()

PATIENCE_S = 10.0
"""How long the start waits for lost sandboxes to go; one that is held must not keep the rest away."""


class Reconciled(NamedTuple):
    """What was found."""

    adopted: int
    ended: int
    strays: int


async def reconcile(machine: Machine) -> Reconciled:
    """Adopt every sandbox that still runs, finish what was half done, remove what nobody knows.

    Requires: nothing is served yet.
    Leaves: `machine.live` holds exactly the sandboxes that run, and those that the kernel would not let go
    within `PATIENCE_S`, which keep their slot and are tried again; no kernel object or folder of another one
    exists.
    """
    lost: list[Live] = []
    for record in machine.journal.read_all():
        sandbox_id = record.request.sandbox_id
        if record.state == "paused":
            machine.paused[sandbox_id] = record
            continue
        machine.slots.adopt(record.slot)
        live = Live(record)
        machine.live[sandbox_id] = live
        if await _adopt(machine, live):
            continue
        if not await _keep_on_disk(machine, live):
            lost.append(live)
    await _end(machine, lost)
    strays = await _remove_strays(machine)
    adopted = sum(live.record.state == "running" for live in machine.live.values())
    log.info("node.reconciled", adopted=adopted, ended=len(lost), strays=strays)
    return Reconciled(adopted, len(lost), strays)


async def _end(machine: Machine, lost: list[Live]) -> None:
    for live in lost:
        if live.record.state == "ending":
            machine.tasks.create_task(kill.finish(machine, live))
        else:
            machine.tasks.create_task(kill.end(machine, live.record.request.sandbox_id, "lost"))
    try:
        async with asyncio.timeout(PATIENCE_S):
            for live in lost:
                await live.gone.wait()
    except TimeoutError:
        log.warning("node.removal_delayed", left=sum(not live.gone.is_set() for live in lost))


async def _adopt(machine: Machine, live: Live) -> bool:
    record = live.record
    if record.state not in ("running", "pausing") or record.boot_id != machine.boot_id or record.init is None:
        return False
    if not machine.driver(record).is_alive(record.init):
        return False
    live.network_namespace = _open_network(record)
    if live.network_namespace is None:
        return False
    try:
        # A node that died in the middle of a change has written it down, and perhaps not carried it out.
        online = record.request.allow_internet
        await threads.in_thread(machine.network.set_online, record.slot, online=online)
    except Unavailable as error:
        log.warning("sandbox.not_adopted", sandbox_id=record.request.sandbox_id, error=str(error))
        return False  # its namespace's descriptor is closed with all else of it
    if record.state == "pausing" or record.is_frozen:
        try:
            machine.drivers.ready(record.isolation)
        except UnsupportedOption as error:
            log.warning("sandbox.not_adopted", sandbox_id=record.request.sandbox_id, error=str(error))
            return False  # nobody can have it go on
        await _go_on(machine, live)
    kill.watch(machine, live)
    return True


async def _go_on(machine: Machine, live: Live) -> None:
    """Have a sandbox go on that stood still when the node died: an image was not complete then.

    It is frozen again by whoever had it frozen, or since nothing happens in it.
    """
    with contextlib.suppress(Internal):  # it had not come to that
        await freezing.thaw(machine, live)
    machine.note(live, msgspec.structs.replace(live.record, state="running", is_frozen=False))


async def _keep_on_disk(machine: Machine, live: Live) -> bool:
    """Have a sandbox that does not run be paused, if there is an image that nothing has happened after."""
    record = live.record
    if record.state == "pausing":
        # It ended after its image was complete, and before that was written down.
        name = pause.next_image(record)
        if name not in machine.images:
            return False
        live.record = msgspec.structs.replace(
            record, state="resuming", image=name, images_made=record.images_made + 1
        )
    elif record.state != "resuming":
        return False
    await resume.put_back(machine, live)
    return True


def _open_network(record: Record) -> int | None:
    assert record.init is not None
    try:
        return os.open(f"/proc/{record.init.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # it ended in this very moment


def _remove_old_images(machine: Machine) -> int:
    """Those of sandboxes that have gone on since, or are gone, and of builds that are."""
    kept = {record.image for record in machine.paused.values()}
    old = [
        name
        for name in machine.images.names() - kept
        if not name.startswith((warm_images.PREFIX, snapshots.PREFIX, agent_images.PREFIX))
        or warm_images.is_of_none(machine, name)
    ]
    for name in old:
        machine.images.remove(name)
    return len(old)


async def _remove_strays(machine: Machine) -> int:
    """Remove what carries the name of a sandbox that no record knows."""
    count = 0
    drivers = machine.drivers.known()
    found = {sandbox_id for driver in drivers for sandbox_id in driver.leftovers()}
    for sandbox_id in found - machine.live.keys():
        for driver in drivers:  # whose it was is not known any more
            await driver.destroy(sandbox_id, machine.folder(sandbox_id), None)
        count += 1
    for slot in machine.network.leftovers() - machine.slots.taken:
        await threads.in_thread(machine.network.remove, slot)
        count += 1
    await threads.in_thread(machine.network.sweep)
    for parent in (machine.config.state_dir / "sandboxes", machine.config.run_dir / "agents"):
        for folder in parent.iterdir():
            if folder.name not in machine.live:
                machine.trash.put(folder)
                count += 1
    count += machine.images.remove_unfinished() + _remove_old_images(machine)
    count += machine.layers.remove_unfinished() + kept_files.sweep(machine)
    for folder in machine.volumes.unfinished():
        machine.trash.put(folder)
        count += 1
    return count
