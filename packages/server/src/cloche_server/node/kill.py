"""End a sandbox, for whatever reason: the one way out, also of half-made ones."""

from __future__ import annotations

import asyncio
import contextlib
import os

import msgspec
import structlog

from cloche_server.link import Event
from cloche_server.node import freezing, kept_files, threads
from cloche_server.node.lifecycle import next_state
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import EndReason, SandboxUnready
from cloche_wire.errors import ClocheError, Internal

RETRY_S = 2.0

log = structlog.get_logger()


async def end(machine: Machine, sandbox_id: str, reason: EndReason) -> None:
    """End a sandbox and return when nothing of it is left. Idempotent; callers of the same sandbox all wait.

    Leaves: no process, control group, socket, folder in place, slot or record of it, and an interface at most
    that nothing passes, until `network_sweep`. A step that the kernel refuses is tried again every 2 s, and
    until then the record says `ending`, so that a restart goes on with it.
    """
    live = machine.live.get(sandbox_id)
    if live is None:
        return
    if live.record.state in ("creating", "ready", "running", "building"):
        if live.record.state == "ready":
            machine.ends.publish(Event("unready", SandboxUnready(sandbox_id)))
        live.record = msgspec.structs.replace(
            live.record, state=next_state(live.record.state, "end"), end_reason=reason
        )
        # A full disk must not keep a sandbox alive: after a crash the older record leads to the same end.
        with contextlib.suppress(OSError):
            machine.journal.write(live.record)
        machine.publish_gone(live.record)
        if live.builder is not None:
            live.builder.cancel()
        machine.tasks.create_task(finish(machine, live))
    await live.gone.wait()


async def finish(machine: Machine, live: Live) -> None:
    """Take away what is left of a sandbox that is ending, and tell everybody once it is gone."""
    if live.builder is not None:
        await live.built.wait()
    elif machine.before_removal is not None and live.record.request.access_token and not live.record.is_build:
        with contextlib.suppress(Internal):  # its last words are all that is missing then
            await freezing.go_on(machine, live)
        await machine.before_removal(live)
    while True:
        try:
            await dismantle(machine, live, keeps_record=False)
        except (OSError, ClocheError) as error:
            log.warning("sandbox.removal_failed", sandbox_id=live.record.request.sandbox_id, error=str(error))
            await asyncio.sleep(RETRY_S)
        else:
            break
    machine.publish_ended(live.record)
    log.info("sandbox.ended", sandbox_id=live.record.request.sandbox_id, reason=live.record.end_reason)
    live.gone.set()


async def dismantle(machine: Machine, live: Live, *, keeps_record: bool) -> None:
    """Undo every step of its making, in reverse. Each part is idempotent."""
    record = live.record
    sandbox_id = record.request.sandbox_id
    await machine.driver(record).destroy(sandbox_id, machine.folder(sandbox_id), record.init)
    if live.network_namespace is not None:
        os.close(live.network_namespace)
        live.network_namespace = None
    async with live.policy_turn:
        await threads.in_thread(machine.network.remove, record.slot)
    machine.network_removed.set()
    machine.trash.put(machine.sockets(sandbox_id))
    machine.trash.put(machine.folder(sandbox_id))
    if not keeps_record:
        machine.journal.remove(sandbox_id)
    machine.slots.give_back(record.slot)
    machine.live.pop(sandbox_id, None)
    if record.layers:
        kept_files.sweep(machine)


async def end_or_forget(machine: Machine, sandbox_id: str, reason: EndReason) -> None:
    """End a sandbox that runs, or remove one that is paused, after whatever is being done with it.

    Raises:
        SandboxNotFound: It is neither.
    """
    async with machine.turns.of(sandbox_id):
        record = machine.paused.pop(sandbox_id, None)
        if record is None:
            machine.find(sandbox_id)
            await end(machine, sandbox_id, reason)
            return
        machine.journal.remove(sandbox_id)
        if record.image is not None:
            kept_files.forget(machine, record.image)
        record = msgspec.structs.replace(record, state="ending", end_reason=reason)
        machine.publish_gone(record)
        machine.publish_ended(record)
        log.info("sandbox.ended", sandbox_id=sandbox_id, reason=reason)


async def end_in_turn(machine: Machine, sandbox_id: str, reason: EndReason) -> None:
    """End a sandbox after whatever is being done with it. Idempotent."""
    async with machine.turns.of(sandbox_id):
        await end(machine, sandbox_id, reason)


def watch(machine: Machine, live: Live) -> None:
    """End the sandbox when its init ends by itself."""
    machine.tasks.create_task(_end_after_init(machine, live))


async def _end_after_init(machine: Machine, live: Live) -> None:
    assert live.record.init is not None
    await machine.driver(live.record).wait(live.record.init)
    if live.record.state in ("ready", "running"):
        await end(machine, live.record.request.sandbox_id, "exited")
    elif live.record.state == "building":
        await end_in_turn(machine, live.record.request.sandbox_id, "exited")


async def end_all(machine: Machine, reason: EndReason) -> None:
    """End every sandbox at once and wait until their folders are gone too. Paused ones stay as they are."""
    async with asyncio.TaskGroup() as tasks:
        for sandbox_id in list(machine.live):
            tasks.create_task(end_in_turn(machine, sandbox_id, reason))
    await machine.trash.wait_until_empty()
