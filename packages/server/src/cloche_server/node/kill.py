"""End a sandbox, for whatever reason: the one way out, also of half-made ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import msgspec
import structlog

from cloche_server.link import Event
from cloche_server.node.lifecycle import next_state
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import EndReason, SandboxUnready
from cloche_wire.errors import ClocheError

_RETRY_S = 2.0

log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking step on a thread, to its end even when the caller is cancelled.

    Half a step has no undo.
    """
    step = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait({step})  # an undo must not begin while the step still runs
        if not step.cancelled():
            step.exception()  # marks it as seen; the cancellation is what is told
        raise


async def end(machine: Machine, sandbox_id: str, reason: EndReason) -> None:
    """End a sandbox and return when nothing of it is left. Idempotent; callers of the same sandbox all wait.

    Leaves: no process, control group, socket, folder in place, slot or record of it, and an interface at most
    that nothing passes, until `network_sweep`. A step that the kernel refuses is tried again every 2 s, and
    until then the record says `ending`, so that a restart goes on with it.
    """
    live = machine.live.get(sandbox_id)
    if live is None:
        return
    if live.record.state in ("creating", "ready", "running"):
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
    elif machine.before_removal is not None and live.record.request.access_token:
        await machine.before_removal(live)
    while True:
        try:
            await _remove(machine, live)
        except (OSError, ClocheError) as error:
            log.warning("sandbox.removal_failed", sandbox_id=live.record.request.sandbox_id, error=str(error))
            await asyncio.sleep(_RETRY_S)
        else:
            break
    machine.publish_ended(live.record)
    log.info("sandbox.ended", sandbox_id=live.record.request.sandbox_id, reason=live.record.end_reason)
    live.gone.set()


async def _remove(machine: Machine, live: Live) -> None:
    """Undo every step of `create`, in reverse. Each part is idempotent."""
    record = live.record
    sandbox_id = record.request.sandbox_id
    await machine.driver.destroy(sandbox_id, machine.folder(sandbox_id), record.init)
    if live.network_namespace is not None:
        os.close(live.network_namespace)
        live.network_namespace = None
    async with live.policy_turn:
        await in_thread(machine.network.remove, record.slot)
    machine.network_removed.set()
    machine.trash.put(machine.sockets(sandbox_id))
    machine.trash.put(machine.folder(sandbox_id))
    machine.journal.remove(sandbox_id)
    machine.slots.give_back(record.slot)
    machine.live.pop(sandbox_id, None)


def watch(machine: Machine, live: Live) -> None:
    """End the sandbox when its init ends by itself."""
    machine.tasks.create_task(_end_after_init(machine, live))


async def _end_after_init(machine: Machine, live: Live) -> None:
    assert live.record.init is not None
    await machine.driver.wait(live.record.init)
    if live.record.state in ("ready", "running"):
        await end(machine, live.record.request.sandbox_id, "exited")


async def end_all(machine: Machine, reason: EndReason) -> None:
    """End every sandbox at once and wait until their folders are gone too."""
    async with asyncio.TaskGroup() as tasks:
        for sandbox_id in list(machine.live):
            tasks.create_task(end(machine, sandbox_id, reason))
    await machine.trash.wait_until_empty()
