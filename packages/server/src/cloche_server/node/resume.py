"""Have a paused sandbox run again, for whoever asks: a client, or traffic.

Its image is kept until the resumed one has answered; whatever fails before that leaves the sandbox paused.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta

import msgspec
import structlog

from cloche_server.node import assemble, freezing, kept_files, kill, pause
from cloche_server.node.families import Kind
from cloche_server.node.journal import Record
from cloche_server.node.lifecycle import next_state
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import ResumeSandbox, Route, SandboxState, Wake
from cloche_wire.errors import ClocheError, Conflict, Internal, SandboxNotFound, Unavailable

LEAST_WOKEN_S = 300
"""How long a sandbox lives at least that traffic has woken; E2B's cloud does the same."""

log = structlog.get_logger()


async def resume(machine: Machine, request: ResumeSandbox) -> SandboxState:
    """Have a paused sandbox run again.

    Leaves: state running, its route published, its image gone; on an error paused as it was.

    Raises:
        SandboxNotFound: It is not there.
        Conflict: It runs.
        ResourceExhausted: The limit of sandboxes is reached.
        SnapshotUnusable: Its image is damaged, or of other versions.
        UnsupportedOption: This machine lacks its isolation by now.
        Unavailable: The node is draining.
        Internal: A step failed; the message names it.
    """
    async with machine.turns.of(request.sandbox_id):
        record = machine.paused.get(request.sandbox_id)
        if record is None:
            machine.find(request.sandbox_id)
            raise Conflict(f"sandbox runs: {request.sandbox_id}")
        return (await _resume(machine, record, request)).public()


async def wake(machine: Machine, request: Wake) -> Route:
    """Have a sandbox run that traffic may wake, or go on that stands still; one that does is a success.

    Raises:
        SandboxNotFound: It neither runs nor may be woken so.
        Other: As `resume`.
    """
    async with machine.turns.of(request.sandbox_id):
        record = machine.paused.get(request.sandbox_id)
        if record is None:
            live = machine.find(request.sandbox_id)
            await freezing.go_on(machine, live)
            return machine.route(live.record)
        if not record.request.wakes_on_traffic:
            raise SandboxNotFound(f"no such sandbox: {request.sandbox_id}")
        timeout_s = max(record.request.timeout_s, LEAST_WOKEN_S)
        return machine.route(await _resume(machine, record, ResumeSandbox(request.sandbox_id, timeout_s)))


async def _resume(machine: Machine, record: Record, request: ResumeSandbox) -> Record:
    if machine.draining:
        raise Unavailable("the server is stopping")
    assert record.image is not None
    began_s = machine.clock.boot_s()
    origin = await assemble.from_image(machine, record.image, record.isolation)
    origin = origin._replace(reboots=origin.image is not None and (origin.reboots or not request.memory))
    now, boot_s = machine.clock.now(), machine.clock.boot_s()
    slot, family = machine.families.place(Kind.of(record.request), boot_s)
    resuming = msgspec.structs.replace(
        record,
        state=next_state(record.state, "resume"),
        slot=slot,
        boot_id=machine.boot_id,
        layers=origin.kept,
        end_at=now + timedelta(seconds=request.timeout_s),
        deadline_boot_s=boot_s + request.timeout_s,
    )
    live = Live(resuming, family=family)
    machine.live[request.sandbox_id] = live
    try:
        machine.journal.write(resuming)
        await assemble.assemble(machine, live, origin)
        await assemble.introduce(machine, live, origin)
        # From here on the image is old: what the resumed one does is not in it.
        state = next_state(live.record.state, "started")
        machine.note(live, msgspec.structs.replace(live.record, state=state, image=None))
    except (ClocheError, OSError) as error:
        # The node itself ends where it is cancelled: its next start puts this back.
        await put_back(machine, live)
        if isinstance(error, OSError):
            raise Internal(f"cannot resume the sandbox: {error}") from error
        raise
    del machine.paused[request.sandbox_id]
    kept_files.forget(machine, record.image)
    machine.publish_route(live.record)
    machine.deadlines_changed.set()
    kill.watch(machine, live)
    machine.publish_state("resumed", live.record)
    took_ms = round(1000 * (machine.clock.boot_s() - began_s))
    log.info("sandbox.resumed", sandbox_id=request.sandbox_id, ms=took_ms)
    return live.record


async def put_back(machine: Machine, live: Live) -> None:
    """Have a sandbox that could not be resumed be paused as before."""
    await pause.put_away(machine, live)
    record = live.record
    state = next_state(record.state, "not_resumed")
    paused = msgspec.structs.replace(record, state=state, init=None)
    machine.paused[record.request.sandbox_id] = paused
    # Where the disk is full the record says `resuming`, which leads to the same after a restart.
    with contextlib.suppress(OSError):
        machine.journal.write(paused)
