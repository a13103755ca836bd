"""Sandboxes in which nothing happens: they are frozen, or paused, until something needs them.

The edge says when nothing has been open to one for as long as its creator set; what it cannot see is looked
at here: CPU time, connections that the sandbox has open itself, and what the node was asked about it.

No request is lost. Whatever reaches the edge after its word and before it learns that the sandbox stands
still has the sandbox go on at once (`freezing`). A pause, which ends connections, comes second: only when the
edge has said of a sandbox that stands still that nothing is open, so that all that comes later asks for it
first, and waits.
"""

from __future__ import annotations

import structlog

from cloche_server.node import freezing, pause, threads
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import IdleSandbox, LookAgain
from cloche_server.node.metrics import Sampler
from cloche_wire.errors import ClocheError

CPU_PCT = 2.0
"""Of one CPU, beyond what any sandbox uses: an agent and kernels that wait use less than a tenth of it."""
LOOK_AGAIN_S = 5.0
"""Until the edge asks again about one that is busy."""

log = structlog.get_logger()


async def consider(machine: Machine, sampler: Sampler, word: IdleSandbox) -> LookAgain:
    """Have a sandbox stand still, or one that does be paused, if nothing happens in it.

    Raises:
        SandboxNotFound: It is gone.
        Conflict: It is paused, or on its way there or back.
    """
    live = machine.find(word.sandbox_id)
    request = live.record.request
    later = LookAgain(max(LOOK_AGAIN_S, float(request.idle_after_s)))
    if not request.idle_after_s or machine.turns.of(word.sandbox_id).locked():
        return later
    if live.record.is_frozen:
        if word.is_frozen and request.idle_action == "pause":
            machine.tasks.create_task(_pause(machine, word.sandbox_id))
        return later
    missing_s = request.idle_after_s - (machine.clock.boot_s() - live.needed_boot_s)
    if missing_s > 0:
        return LookAgain(missing_s)
    usual_pct = machine.driver(live.record).capabilities().own_cpu_pct
    if sampler.busiest_pct(word.sandbox_id, request.idle_after_s) > usual_pct + CPU_PCT:
        return LookAgain(LOOK_AGAIN_S)
    if await threads.in_thread(machine.network.has_connections, live.record.slot):
        return LookAgain(LOOK_AGAIN_S)
    machine.tasks.create_task(_freeze(machine, live))
    return later


async def _freeze(machine: Machine, live: Live) -> None:
    sandbox_id = live.record.request.sandbox_id
    turn = machine.turns.of(sandbox_id)
    if turn.locked():
        return
    async with turn:
        if live.record.state != "running" or live.record.is_frozen:
            return
        try:
            await freezing.come_to_rest(machine, live, is_idle=True)
        except (ClocheError, OSError) as error:
            log.warning("sandbox.idle_not_frozen", sandbox_id=sandbox_id, error=str(error))


async def _pause(machine: Machine, sandbox_id: str) -> None:
    """Have one be paused that stands still, if it still does when it is its turn."""
    turn = machine.turns.of(sandbox_id)
    if turn.locked():
        return
    async with turn:
        live = machine.live.get(sandbox_id)
        if live is None or live.record.state != "running" or not live.record.is_frozen:
            return
        try:
            await pause.put_on_disk(machine, live, with_memory=True)
        except ClocheError as error:
            log.warning("sandbox.idle_not_paused", sandbox_id=sandbox_id, error=str(error))
