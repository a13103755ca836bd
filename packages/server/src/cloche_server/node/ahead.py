"""Keep sandboxes ready before they are asked for: agent and Python up, the usual packages imported.

One is used once, by whoever takes it with its id (`create.create`), and never given back. Until then it has
no token, so that its agent refuses everything, no route, and no network. Making them is work for quiet
moments: one at a time, and none while a create is under way. Waiting for a start command is no work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from cloche_server.link import Event
from cloche_server.node import agent_images, assemble, create, kill, warm_images, warming, zygotes
from cloche_server.node.demand import Need
from cloche_server.node.families import SPARE, Kind
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import SandboxReady
from cloche_wire.errors import ClocheError, TemplateNotFound

LOOK_AGAIN_S = 10.0
"""Without any event: what is not wanted any more goes, what failed is tried again."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 3600.0
"""After a failure, doubled by each further one: a template whose imports hang costs a core for a minute."""

log = structlog.get_logger()


class _Pause(NamedTuple):
    """How long nothing of a kind is made, after a failure."""

    until_boot_s: float
    length_s: float

    @classmethod
    def after(cls, earlier: _Pause | None, now: float) -> _Pause:
        """One that begins now."""
        length_s = min(2 * earlier.length_s, LONGEST_PAUSE_S) if earlier else FIRST_PAUSE_S
        return cls(now + length_s, length_s)


class _Pauses:
    """What is not tried at this time: because it has failed, or is under way."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pauses: dict[object, _Pause] = {}
        self._under_way: set[object] = set()

    def __contains__(self, what: object) -> bool:
        pause = self._pauses.get(what)
        is_early = pause is not None and self._machine.clock.boot_s() < pause.until_boot_s
        return is_early or what in self._under_way

    async def follow(self, what: object, making: Awaitable[bool], *, alone: bool) -> bool:
        """Make it, and note whether it was made; with `alone` nothing else does so meanwhile.

        Noted in one step with the end of its sandbox, which wakes the keeper: it would try again at once.
        """
        is_made = False
        if alone:
            self._under_way.add(what)
        try:
            is_made = await making
        finally:
            self._under_way.discard(what)
            self.note(what, is_over=is_made)
        return is_made

    def note(self, what: object, *, is_over: bool) -> None:
        """It was tried: with success, or a pause begins, longer than the last."""
        if is_over:
            self._pauses.pop(what, None)
        else:
            self._pauses[what] = _Pause.after(self._pauses.get(what), self._machine.clock.boot_s())


async def run(machine: Machine) -> None:
    """Make and end sandboxes as the demand asks, until cancelled."""
    demand = machine.demand
    pauses = _Pauses(machine)
    while True:
        demand.changed.clear()
        wanted = demand.wanted(machine.clock.boot_s())
        await _end_surplus(machine, wanted)
        await zygotes.close_unused(machine, {Kind.of(need) for need in wanted})
        for isolation in sorted(demand.builds):
            await _make_agent_image(machine, isolation, pauses)
        for need in wanted:
            await _open_family(machine, need, pauses)
            await _make_image(machine, need, pauses)
        need = _missing(machine, wanted, pauses)
        if need is not None and await _make(machine, need, pauses):
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_S):
                await demand.changed.wait()


def ready(machine: Machine) -> list[SandboxReady]:
    """Those that can be taken now, oldest first."""
    return [_offer(live) for live in machine.live.values() if live.record.state == "ready"]


def _offer(live: Live) -> SandboxReady:
    return SandboxReady(live.record.request.sandbox_id, *Need.of(live.record.request))


async def _end_surplus(machine: Machine, wanted: dict[Need, int]) -> None:
    left = Counter(wanted)
    for live in [live for live in machine.live.values() if live.record.state == "ready"]:
        need = Need.of(live.record.request)
        left[need] -= 1
        if left[need] < 0 and live.record.state == "ready":
            await kill.end(machine, live.record.request.sandbox_id, "killed")


def _missing(machine: Machine, wanted: dict[Need, int], pauses: _Pauses) -> Need | None:
    """The kind to make one of now; None where none is missing, or it is not the time."""
    alive = machine.live.values()
    if len(alive) >= machine.config.limits.max_sandboxes:
        return None  # what is left of the slots is for those who ask
    if machine.draining or any(live.record.state == "creating" and not live.is_waiting for live in alive):
        return None  # woken when that create is over
    there = Counter(Need.of(live.record.request) for live in alive if _is_nobodys(live))
    missing = [need for need, count in wanted.items() if there[need] < count and need not in pauses]
    missing = [need for need in missing if _image_for(need) not in pauses]
    if not missing or not _has_memory(missing[0], machine.config.ahead.memory_reserve_pct):
        return None
    return missing[0]


def _is_nobodys(live: Live) -> bool:
    """Whether it is ready, or will be without further work."""
    return live.record.state == "ready" or (live.is_waiting and not live.record.request.access_token)


def _image_for(need: Need) -> object:
    """What the image of its template is called among pauses."""
    return warm_images.PREFIX, need.build_id, need.isolation


def _has_memory(need: Need, reserve_pct: int) -> bool:
    """Whether one more leaves the reserve free, if it never uses more than a tenth of what it may."""
    found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(found[name].split()[0]) >> 10 for name in ("MemTotal", "MemAvailable"))
    return available - need.memory_mib // 10 > total * reserve_pct // 100


async def _open_family(machine: Machine, need: Need, pauses: _Pauses) -> None:
    """Start the zygote that sandboxes are forked from, before there are more than the last one is for.

    Also beside creates: one that finds no family costs ten times more once it runs code.
    """
    kind = Kind.of(need)
    if not machine.config.ahead.most or machine.draining:
        return
    if not machine.drivers.of(need.isolation).capabilities().families:
        return
    if kind in pauses or machine.families.room(kind, machine.clock.boot_s()) >= SPARE:
        return
    if not _has_memory(need, machine.config.ahead.memory_reserve_pct):
        return
    pauses.note(kind, is_over=await zygotes.open_family(machine, kind))


async def _make_agent_image(machine: Machine, isolation: str, pauses: _Pauses) -> None:
    """Make what steps of builds go on from, once for all of them; those of now are started beside it."""
    what = agent_images.PREFIX, isolation
    if machine.draining or what in pauses or len(machine.live) >= machine.config.limits.max_sandboxes:
        return
    if not agent_images.is_missing(machine, isolation):
        machine.demand.builds.discard(isolation)
        return
    making = pauses.follow(what, agent_images.make(machine, isolation), alone=True)
    # A task of its own, since whoever ends the sandbox cancels its maker.
    await asyncio.wait({machine.tasks.create_task(making)})


async def _make_image(machine: Machine, need: Need, pauses: _Pauses) -> None:
    """Make what sandboxes of a template go on from, once: it is nobody's, whoever needs it first."""
    what = _image_for(need)
    if machine.draining or what in pauses:
        return
    try:
        if not warming.is_missing(machine, need):
            return
    except TemplateNotFound:
        return
    only_waits = asyncio.Event()
    making = warming.make(machine, need, only_waits.set)
    task = machine.tasks.create_task(pauses.follow(what, making, alone=True))
    await _until_idle(task, only_waits)


async def _make(machine: Machine, need: Need, pauses: _Pauses) -> bool:
    """Make one; whether it is ready, or will be without further work.

    A task of its own, since whoever ends the sandbox cancels its maker.
    """
    only_waits = asyncio.Event()
    making = _make_one(machine, need, only_waits.set)
    task = machine.tasks.create_task(pauses.follow(need, making, alone=False))
    await _until_idle(task, only_waits)
    return not task.done() or (not task.cancelled() and task.exception() is None and task.result())


async def _until_idle(task: asyncio.Task[bool], only_waits: asyncio.Event) -> None:
    """Return when the task has ended, or does nothing any more but wait for a start command."""
    task.add_done_callback(lambda _: only_waits.set())
    await only_waits.wait()


async def _make_one(machine: Machine, need: Need, only_waits: Callable[[], None]) -> bool:
    if machine.draining:
        return False  # since the keeper looked
    request = need.nobodys()
    began_s = machine.clock.boot_s()
    try:
        origin = await warm_images.origin(machine, need.build_id, need.isolation)
        live = create.first_live(machine, request)
        async with create.making(machine, live):
            await assemble.assemble(machine, live, origin)
            await assemble.warm_up(machine, live, origin)
            only_waits()
            await assemble.until_ready(machine, live, origin)
            machine.move(live, "made_ahead")
    except (ClocheError, OSError) as error:
        log.warning("sandbox.not_made_ahead", build_id=need.build_id, error=str(error))
        return False
    machine.ends.publish(Event("ready", _offer(live)))
    kill.watch(machine, live)
    took_ms = round(1000 * (machine.clock.boot_s() - began_s))
    log.info("sandbox.made_ahead", sandbox_id=request.sandbox_id, slot=live.record.slot, ms=took_ms)
    return True
