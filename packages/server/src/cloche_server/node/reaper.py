"""Time-outs: the node ends a sandbox at its deadline by the boot clock, whatever the wall clock does."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec

from cloche_server.node import kill, pause
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import SandboxState, SetTimeout

LONGEST_SLEEP_S = 1.0
"""The event loop sleeps by CLOCK_MONOTONIC, which stands still while the machine is suspended."""


def set_timeout(machine: Machine, request: SetTimeout) -> SandboxState:
    """Move a running sandbox's end to `timeout_s` from now.

    Raises:
        SandboxNotFound: It does not run.
    """
    live = machine.find(request.sandbox_id)
    deadline = machine.clock.boot_s() + request.timeout_s
    if not (request.only_extend and deadline <= live.record.deadline_boot_s):
        end_at = machine.clock.now() + timedelta(seconds=request.timeout_s)
        machine.note(live, msgspec.structs.replace(live.record, deadline_boot_s=deadline, end_at=end_at))
        machine.deadlines_changed.set()
    return live.record.public()


async def run(machine: Machine) -> None:
    """End sandboxes as their deadlines come, until cancelled.

    Sleeps until the earliest, or a second at most; a change wakes it.
    """
    while True:
        machine.deadlines_changed.clear()
        running = [live for live in machine.live.values() if live.record.state == "running"]
        now = machine.clock.boot_s()
        for live in running:
            if live.record.deadline_boot_s <= now:
                _end_of_time(machine, live)
        wait_s = _until_next(running, now)
        try:
            async with asyncio.timeout(wait_s):
                await machine.deadlines_changed.wait()
        except TimeoutError:
            continue


def _end_of_time(machine: Machine, live: Live) -> None:
    request = live.record.request
    if machine.turns.of(request.sandbox_id).locked():
        return  # somebody pauses, copies or ends it just now: the next look shows what has come of it
    if request.on_timeout == "pause":
        machine.tasks.create_task(pause.pause_by_timeout(machine, live))
    else:
        machine.tasks.create_task(kill.end(machine, request.sandbox_id, "timeout"))


def _until_next(running: list[Live], now: float) -> float | None:
    waits = [live.record.deadline_boot_s - now for live in running if live.record.deadline_boot_s > now]
    return min([*waits, LONGEST_SLEEP_S]) if waits else None
