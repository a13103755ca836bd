"""Sandboxes that stand still: their memory stays where it is, and no CPU is used, until something needs them.

To everybody a frozen sandbox runs: its time goes on, it is listed, killed, paused and copied. Only what its
agent or its programs have to answer needs it, and has it go on first: a request (`resume.wake`), a connection
to a port, a question of the node's own. So whoever asks an agent calls `need` before.

What arrives while it freezes is not lost: the edge learns of it by the route, and whatever it had under way
by then needs the sandbox, so it asks for it to go on; that waits for its turn here.
"""

from __future__ import annotations

import contextlib

import msgspec
import structlog

from cloche_server.link import Event
from cloche_server.node import threads
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import FreezeSandbox
from cloche_wire.errors import Conflict, Internal, NotEnoughSpace, UnsupportedOption

_RECLAIMING = "reclaiming"
"""In the place of a sandbox's id."""

log = structlog.get_logger()


def check_ability(machine: Machine, isolation: str) -> None:
    """Refuse what sandboxes of an isolation cannot do here; its driver is ready afterwards.

    Raises:
        UnsupportedOption: It cannot.
    """
    able = machine.drivers.ready(isolation).capabilities()
    if not able.freezes:
        raise UnsupportedOption(
            f"isolation '{able.name}' cannot freeze a sandbox on this machine",
            hint="mount the freezer hierarchy, or boot with cgroup v2",
        )


async def freeze(machine: Machine, request: FreezeSandbox) -> None:
    """Have a running sandbox stand still until something needs it; one that does is a success.

    Raises:
        SandboxNotFound: It is not there.
        Conflict: It is paused, or something else is being done with it.
        UnsupportedOption: This machine cannot.
        NotEnoughSpace: The disk is full; it runs on.
        Internal: A process of it does not stand still; it runs on.
    """
    turn = machine.turns.of(request.sandbox_id)
    if turn.locked():
        raise Conflict(f"something else is being done with the sandbox: {request.sandbox_id}")
    check_ability(machine, machine.find(request.sandbox_id).record.isolation)
    async with turn:
        live = machine.find(request.sandbox_id)
        if not live.record.is_frozen:
            try:
                await come_to_rest(machine, live, is_idle=False)
            except OSError as error:
                raise NotEnoughSpace("no space left for the record of a sandbox") from error


async def come_to_rest(machine: Machine, live: Live, *, is_idle: bool) -> None:
    """Have a running sandbox stand still, and tell everybody. Requires: its turn.

    Raises:
        Internal: It cannot; it runs on.
        OSError: The disk is full; it runs on.
    """
    await stand_still(machine, live, is_idle=is_idle)
    announce(machine, live)
    log.info("sandbox.frozen", sandbox_id=live.record.request.sandbox_id, is_idle=is_idle)
    machine.tasks.create_task(_reclaim(machine, live))


async def _reclaim(machine: Machine, live: Live) -> None:
    """Have the machine get memory of a frozen sandbox back, off everybody's path.

    One sandbox at a time: what was written to files goes to disk for it, 0.2 s for 200 MB.
    """
    async with machine.turns.of(_RECLAIMING):
        if live.record.is_frozen:
            await threads.in_thread(machine.driver(live.record).reclaim, live.record.request.sandbox_id)


async def stand_still(machine: Machine, live: Live, *, is_idle: bool = False) -> None:
    """Have a running sandbox stand still, and tell nobody.

    Raises:
        Internal: It cannot; it runs on.
        OSError: The disk is full; it runs on.
    """
    sandbox_id = live.record.request.sandbox_id
    # Written down first: a node that dies in the middle leaves it standing still.
    machine.note(live, msgspec.structs.replace(live.record, is_frozen=True, is_idle=is_idle))
    try:
        await machine.driver(live.record).freeze(sandbox_id, machine.folder(sandbox_id))
    except Internal:
        with contextlib.suppress(Internal):  # the driver says that it runs
            await machine.driver(live.record).thaw(sandbox_id, machine.folder(sandbox_id))
        _note_thawed(machine, live)
        raise


async def need(machine: Machine, live: Live) -> None:
    """Return when a running sandbox goes on that may stand still. Costs nothing where it does not.

    Requires: the caller does not hold its turn.

    Raises:
        SandboxNotFound: It has ended meanwhile.
        Conflict: It has been paused meanwhile.
        Internal: It does not go on.
    """
    live.needed_boot_s = machine.clock.boot_s()
    if live.record.is_frozen:
        async with machine.turns.of(live.record.request.sandbox_id):
            # It may have ended or been paused while we waited.
            await go_on(machine, machine.find(live.record.request.sandbox_id))


async def go_on(machine: Machine, live: Live) -> None:
    """Have a sandbox go on that may stand still, and tell everybody. Requires: its turn, or nobody else.

    Raises:
        Internal: It does not; it stands still as before.
    """
    live.needed_boot_s = machine.clock.boot_s()
    if live.record.is_frozen:
        await thaw(machine, live)
        announce(machine, live)


def announce(machine: Machine, live: Live) -> None:
    """Tell everybody whether a running sandbox stands still."""
    machine.publish_route(live.record)
    machine.ends.publish(Event("frozen" if live.record.is_frozen else "thawed", live.record.public()))


async def thaw(machine: Machine, live: Live) -> None:
    """Have a sandbox go on of which nobody was told that it stands still: it did so for a copy of it.

    Raises:
        Internal: It cannot, or did not stand still.
    """
    sandbox_id = live.record.request.sandbox_id
    await machine.driver(live.record).thaw(sandbox_id, machine.folder(sandbox_id))
    _note_thawed(machine, live)


def _note_thawed(machine: Machine, live: Live) -> None:
    live.record = msgspec.structs.replace(live.record, is_frozen=False, is_idle=False)
    with contextlib.suppress(OSError):  # on a full disk the older record has it thawed once more
        machine.journal.write(live.record)
