"""Create a sandbox: a list of steps, each with an undo that `kill.end` knows too."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec
import structlog

from cloche_server import isolation_choice
from cloche_server.ids import is_build_id, is_sandbox_id
from cloche_server.node import (
    assemble,
    freezing,
    kill,
    pause,
    snapshots,
    threads,
    volume_requests,
    warm_images,
)
from cloche_server.node.assemble import Origin
from cloche_server.node.demand import Need
from cloche_server.node.egress import check_policy
from cloche_server.node.families import Kind
from cloche_server.node.journal import Record
from cloche_server.node.lifecycle import next_state
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import CreateSandbox, SandboxState
from cloche_wire.errors import (
    AlreadyExists,
    Internal,
    InvalidArgument,
    NotEnoughSpace,
    ResourceExhausted,
    Unavailable,
)

READY_WAIT_S = 20.0
"""For a start command: clients wait for a create for 60 s."""
_IN_USE = ("creating", "running", "pausing", "resuming")

log = structlog.get_logger()


async def create(machine: Machine, request: CreateSandbox) -> SandboxState:
    """Make a sandbox, or take the one of that id that was made ahead; return when its agent has answered.

    Leaves: state running, journalled, its route published; on any error nothing of it.

    Raises:
        Unavailable: The node is draining.
        InvalidArgument: The request holds what the api should not have let through, or the sandbox made
            ahead is of another kind.
        TemplateNotFound: No finished build of that id lies here.
        SnapshotNotFound, SnapshotUnusable: No such snapshot, or it is damaged or of other versions.
        PermissionDenied: The isolation asked for is weaker than the operator permits.
        UnsupportedOption: This node lacks that isolation, or it cannot do what is asked.
        VolumeNotFound: No such volume of that team.
        ResourceExhausted: The limit of sandboxes is reached; one made ahead is left as it was.
        Internal: A step failed; the message names it.
    """
    check(machine, request)
    request = _settle_isolation(machine, request)
    volume_requests.check_mounts(machine, request)
    origin = await _origin(machine, request)
    live = await _made_ahead(machine, request)
    machine.demand.note(Need.of(request), machine.clock.boot_s())
    if live is not None:
        _claim(machine, live, request)
    else:
        live = first_live(machine, request)
        live.record = msgspec.structs.replace(live.record, layers=origin.kept)
    async with making(machine, live):
        if live.record.init is None:
            await assemble.assemble(machine, live, origin)
            await assemble.introduce(machine, live, origin)
            await _until_ready(machine, live, origin)
        else:
            await _hand_over(machine, live, origin)
        machine.move(live, "started")
    machine.publish_route(live.record)
    machine.deadlines_changed.set()
    kill.watch(machine, live)
    log.info("sandbox.created", sandbox_id=request.sandbox_id, slot=live.record.slot)
    return live.record.public()


async def _origin(machine: Machine, request: CreateSandbox) -> Origin:
    """What it is made of.

    Raises:
        UnsupportedOption: Its isolation cannot do what is to happen with it later.
        TemplateNotFound: No finished build of that id lies here.
        SnapshotNotFound: Or no such snapshot.
        SnapshotUnusable: Or it is damaged, or of other versions.
        InvalidArgument: Or it has its volumes at other paths.
    """
    if request.on_timeout == "pause":
        pause.check_ability(machine, request, request.isolation, with_memory=request.pause_memory)
    if request.idle_after_s:
        freezing.check_ability(machine, request.isolation)
        if request.idle_action == "pause":
            pause.check_ability(machine, request, request.isolation, with_memory=True)
    if request.snapshot_id is None:
        if request.volume_mounts:
            return assemble.from_template(machine, request.build_id)  # warm images are of those without any
        return await warm_images.origin(machine, request.build_id, request.isolation)
    origin = await assemble.from_image(machine, snapshots.name_of(request.snapshot_id), request.isolation)
    if origin.image is not None:
        volume_requests.check_paths(request, origin.volume_paths)
    return origin


async def _until_ready(machine: Machine, live: Live, origin: Origin) -> None:
    """Wait for the start command of a sandbox that was started; one that goes on from an image has it ready.

    It has failed, or takes longer: the sandbox is one all the same, in which its creator may see why.
    """
    if origin.image is not None or not origin.template.tells_when_ready:
        return
    try:
        await assemble.until_ready(machine, live, origin, timeout_s=READY_WAIT_S)
    except Internal as error:
        request = live.record.request
        log.warning("sandbox.not_ready", sandbox_id=request.sandbox_id, reason=error.message)


async def _hand_over(machine: Machine, live: Live, origin: Origin) -> None:
    """Give a sandbox made ahead its token, and the network that its request asks for; it had neither.

    Both at once: until the policy holds it has no network, and until the route is published nobody has a way
    to use the token.
    """
    request = live.record.request

    def give_network() -> None:
        live.cpu_before_s = machine.driver(live.record).usage(request.sandbox_id).cpu_s
        machine.network.set_policy(live.record.slot, request.egress, online=request.allow_internet)

    try:
        async with asyncio.TaskGroup() as steps:
            steps.create_task(threads.in_thread(give_network))
            steps.create_task(assemble.introduce(machine, live, origin, is_warm=True))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


@asynccontextmanager
async def making(machine: Machine, live: Live) -> AsyncGenerator[None]:
    """Make a sandbox in this block: it is journalled before, and on any error nothing of it is left after.

    The record of one made ahead will do: whether it says `ready` or `creating`, a restart ends the sandbox.

    Raises:
        Unavailable: Somebody ended it meanwhile.
        ClocheError: A step of the block failed; OSError is told as one.
    """
    sandbox_id = live.record.request.sandbox_id
    machine.live[sandbox_id] = live
    try:
        if live.record.init is None:
            machine.journal.write(live.record)
        yield
        live.builder = None
    except asyncio.CancelledError:
        live.built.set()
        if live.record.state == "creating":
            raise  # the node itself ends: its next start undoes this
        await live.gone.wait()
        raise Unavailable("the sandbox was ended before it was ready") from None
    except Exception as error:
        live.builder = None
        await kill.end(machine, sandbox_id, "failed")
        told = _told(error)
        if told is error:
            raise
        raise told from error
    finally:
        machine.demand.changed.set()


async def _made_ahead(machine: Machine, request: CreateSandbox) -> Live | None:
    """The sandbox that was made ahead under the request's id; None where there is none any more.

    Raises:
        AlreadyExists: It is somebody's.
        InvalidArgument: It is not what the request needs.
    """
    if request.sandbox_id in machine.paused:
        raise AlreadyExists(f"sandbox exists: {request.sandbox_id}")
    live = machine.live.get(request.sandbox_id)
    if live is not None and live.record.state == "ending" and not live.record.request.access_token:
        await live.gone.wait()
        live = machine.live.get(request.sandbox_id)
    if live is None:
        return None
    if live.record.state != "ready":
        raise AlreadyExists(f"sandbox exists: {request.sandbox_id}")
    if Need.of(live.record.request) != Need.of(request) or request.volume_mounts:
        raise InvalidArgument(f"made ahead for other requests: {request.sandbox_id}")
    return live


def _claim(machine: Machine, live: Live, request: CreateSandbox) -> None:
    """From here on it is the request's, and is ended when the rest of the create fails.

    Raises:
        ResourceExhausted: As many sandboxes as there may be are somebody's.
    """
    # Slots do not tell: there are some for those made ahead, and this one has its own.
    records = [other.record for other in machine.live.values() if other.record.request.access_token]
    used = sum(record.state in _IN_USE for record in records)
    if used >= machine.config.limits.max_sandboxes:
        raise ResourceExhausted(
            f"limit of sandboxes that run at once reached: current {used}",
            hint="kill or pause some, wait for one to end, or raise limits.max_sandboxes",
        )
    before = live.record
    live.builder = asyncio.current_task()
    begins = _record(machine, request, before.slot)
    # What it is made of stays: nothing of it is made again.
    live.record = msgspec.structs.replace(
        before,
        request=request,
        state=next_state(before.state, "claimed"),
        started_at=begins.started_at,
        end_at=begins.end_at,
        deadline_boot_s=begins.deadline_boot_s,
    )


def check(machine: Machine, request: CreateSandbox) -> None:
    """Refuse what would become a path or a limit of another meaning, and everything once the server stops.

    The api checks all this too, but it is unprivileged and speaks with strangers; this process is root.

    Raises:
        Unavailable: The node is draining.
        InvalidArgument: The message says what.
    """
    if machine.draining:
        raise Unavailable("the server is stopping")
    if not is_sandbox_id(request.sandbox_id):
        raise InvalidArgument(f"not a sandbox id: {request.sandbox_id!r}")
    if not is_build_id(request.build_id):
        raise InvalidArgument(f"not a build id: {request.build_id!r}")
    if min(request.cpu_count, request.memory_mib) < 1 or request.timeout_s < 0:
        raise InvalidArgument("cpu_count, memory_mib and timeout_s are counts")
    check_policy(request.egress)


def _settle_isolation(machine: Machine, request: CreateSandbox) -> CreateSandbox:
    """The request with its isolation, whose driver is ready.

    The api settles it too, and is not the one to permit a weaker one.

    Raises:
        TemplateNotFound: No finished build of that id lies here.
        InvalidArgument, PermissionDenied, UnsupportedOption: See `isolation_choice` and `Drivers.ready`.
    """
    drivers, template = machine.drivers, machine.templates.read(request.build_id)
    allowed = machine.config.allow_isolation
    isolation = isolation_choice.settle(request.isolation, template.isolation, drivers.default, allowed)
    drivers.ready(isolation)
    return msgspec.structs.replace(request, isolation=isolation)


def first_live(machine: Machine, request: CreateSandbox) -> Live:
    """A new sandbox whose isolation is settled, with a slot of its own: one of a family where there is one.

    Raises:
        ResourceExhausted: All are taken.
    """
    slot, family = machine.families.place(Kind.of(request), machine.clock.boot_s())
    return Live(_record(machine, request, slot), family=family, builder=asyncio.current_task())


def _record(machine: Machine, request: CreateSandbox, slot: int) -> Record:
    now = machine.clock.now()
    return Record(
        request=request,
        state="creating",
        slot=slot,
        started_at=now,
        end_at=now + timedelta(seconds=request.timeout_s),
        deadline_boot_s=machine.clock.boot_s() + request.timeout_s,
        boot_id=machine.boot_id,
        isolation=request.isolation,
    )


def _told(error: Exception) -> Exception:
    """What the caller is told of a failed step."""
    cause = error.__cause__ if isinstance(error, Internal) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotEnoughSpace("no space left for a sandbox", hint="free space in the state folder")
    return Internal(f"cannot create the sandbox: {error}") if isinstance(error, OSError) else error
