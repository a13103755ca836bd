"""Pause a sandbox: its processes, memory and files go to disk, and nothing else of it is left.

The one way, whoever asks: a client, or its time-out. Until the record says `paused` the sandbox counts as
running, and whatever fails or is killed before that leaves it running. See: `lifecycle`, `images`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec
import structlog

from cloche_server.node import freezing, kept_files, kill
from cloche_server.node.images import FILES, Manifest
from cloche_server.node.journal import Record
from cloche_server.node.lifecycle import next_state
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import CreateSandbox, PauseSandbox
from cloche_wire.errors import (
    ClocheError,
    Conflict,
    Internal,
    NotEnoughSpace,
    SandboxNotFound,
    UnsupportedOption,
)

RETRY_S = 30.0
"""After a time-out whose pause failed: the sandbox runs on until it is tried again."""

log = structlog.get_logger()


def check_ability(machine: Machine, request: CreateSandbox, isolation: str, *, with_memory: bool) -> None:
    """Refuse what a sandbox of an isolation cannot do here; its driver is ready afterwards.

    Raises:
        UnsupportedOption: The message says what, the hint which isolation can.
    """
    able = machine.drivers.ready(isolation).capabilities()
    if not (able.memory_snapshot if with_memory else able.disk_snapshot):
        kept = "memory" if with_memory else "files"
        other = ", or ask for its files alone (memory false)" if able.disk_snapshot else ""
        raise UnsupportedOption(
            f"isolation '{able.name}' cannot keep the {kept} of a sandbox that is paused or copied",
            hint=f"create it with isolation 'gvisor'{other}",
        )
    if request.volume_mounts and not able.saves_beside_volumes and (with_memory or not able.writes_layers):
        raise UnsupportedOption(
            f"isolation '{able.name}' cannot pause or copy a sandbox with volumes on this machine",
            hint="keep what it needs in the volume, kill it, and create another with the same volume",
        )


async def pause(machine: Machine, request: PauseSandbox) -> None:
    """Put a running sandbox on disk.

    Leaves: state paused, journalled and synced, and no kernel object of it; on an error it runs on.

    Raises:
        SandboxNotFound: It is not there.
        Conflict: It is paused, or something else is being done with it.
        UnsupportedOption: Its isolation cannot.
        InUse: Its programs use something in a volume.
        TooLarge: Its files are more than are kept.
        NotEnoughSpace: The disk is full.
        Internal: It cannot be saved; the message says why.
    """
    turn = machine.turns.of(request.sandbox_id)
    if turn.locked():
        raise Conflict(f"something else is being done with the sandbox: {request.sandbox_id}")
    record = machine.find(request.sandbox_id).record
    check_ability(machine, record.request, record.isolation, with_memory=request.memory)
    async with turn:
        await put_on_disk(machine, machine.find(request.sandbox_id), with_memory=request.memory)


async def pause_by_timeout(machine: Machine, live: Live) -> None:
    """Pause a sandbox whose time is over; where that fails it gets some more, since nothing may be lost."""
    request = live.record.request
    try:
        await pause(machine, PauseSandbox(request.sandbox_id, request.pause_memory))
    except (Conflict, SandboxNotFound):
        return
    except ClocheError as error:
        log.warning("sandbox.pause_failed", sandbox_id=request.sandbox_id, error=str(error))
        if live.record.state == "running":
            later = machine.clock.boot_s() + RETRY_S
            machine.note(live, msgspec.structs.replace(live.record, deadline_boot_s=later))


async def put_on_disk(machine: Machine, live: Live, *, with_memory: bool) -> None:
    """As `pause`, for who has its turn."""
    machine.move(live, "pause")
    began_s = machine.clock.boot_s()
    name = next_image(live.record)
    try:
        saved = await save(machine, live, name, with_memory=with_memory, thaws=False)
        paused = msgspec.structs.replace(
            live.record,
            state=next_state(live.record.state, "saved"),
            image=name,
            layers=(),
            is_frozen=False,
            is_idle=False,
            images_made=live.record.images_made + 1,
            init=None,
        )
        machine.journal.write(paused)
    except (ClocheError, OSError) as error:
        kept_files.forget(machine, name)  # one that is complete would count after a crash
        await _go_on(machine, live)
        raise told(error) from error
    # Only now: an agent that saw connections end would take that for clients that have gone, and interrupt
    # their code. What it sees when it goes on is that all were cut at once.
    machine.publish_gone(live.record)
    await put_away(machine, live)
    machine.paused[paused.request.sandbox_id] = paused
    kept_files.sweep(machine)
    machine.publish_state("paused", paused)
    took_ms = round(1000 * (machine.clock.boot_s() - began_s))
    size = saved.manifest.size_bytes
    log.info("sandbox.paused", sandbox_id=live.record.request.sandbox_id, ms=took_ms, bytes=size)


def next_image(record: Record) -> str:
    """The name of the next image of a sandbox, which is of no other."""
    return f"{record.request.sandbox_id}-{record.images_made + 1}"


class Saved(NamedTuple):
    """What an image has come to."""

    manifest: Manifest
    stood_still_s: float
    """How long the sandbox did, if it goes on."""


async def save(
    machine: Machine, live: Live, name: str, *, with_memory: bool, thaws: bool, for_now: bool = False
) -> Saved:
    """Make an image of a sandbox that runs; it stands still meanwhile, and after it unless `thaws`.

    One `for_now` ends with this process at the latest. What stands still before does so after it too.

    Without memory it is of layers, where the driver writes such. Others save memory all the same, and who
    goes on from it ends the processes: ended now, they would be lost where the image then fails.

    Leaves: on an error the sandbox frozen or not, and no image of that name.

    Raises:
        TooLarge: Its files are more than are kept.
        NotEnoughSpace: The disk is full.
        ClocheError: It cannot be saved.
        OSError: The disk is full or broken.
    """
    request = live.record.request
    driver = machine.driver(live.record)
    able = driver.capabilities()
    is_of_layers = able.writes_layers and not with_memory
    begun = machine.images.begin(name)
    entries: tuple[str, ...] = ()
    began_s = machine.clock.boot_s()
    try:
        with kept_files.being_made(machine) as names:
            async with _standing_still(machine, live, thaws=thaws):
                if is_of_layers:
                    await kept_files.take(machine, live, names, ends=not thaws)
                else:
                    entries = await driver.save(request.sandbox_id, machine.folder(request.sandbox_id), begun)
            stood_still_s = machine.clock.boot_s() - began_s
            manifest = Manifest(
                able.image_format,
                request.build_id,
                live.record.runtime_tree,
                request.access_token,
                with_memory,
                request.env,
                shows_boot_id=bool(live.record.shown_boot_id),
                volume_paths=tuple(mount.path for mount in request.volume_mounts),
                volume_entries=entries,
            )
            if is_of_layers:
                layers = await kept_files.complete(machine, live, names, for_now=for_now)
                manifest = msgspec.structs.replace(manifest, format=FILES, layers=layers)
            if for_now:
                return Saved(machine.images.keep(name, manifest), stood_still_s)
            return Saved(await machine.images.commit(name, manifest), stood_still_s)
    except BaseException:
        machine.images.abandon(name)
        kept_files.sweep(machine)
        raise


@asynccontextmanager
async def _standing_still(machine: Machine, live: Live, *, thaws: bool) -> AsyncGenerator[None]:
    """Have a sandbox stand still for this block, and after it unless `thaws` and it ran before."""
    goes_on = thaws and not live.record.is_frozen
    if not live.record.is_frozen:
        await freezing.stand_still(machine, live)
    try:
        yield
    finally:
        if goes_on:
            await freezing.thaw(machine, live)


async def _go_on(machine: Machine, live: Live) -> None:
    """Have a sandbox that could not be saved run as before."""
    sandbox_id = live.record.request.sandbox_id
    with contextlib.suppress(Internal):  # it may never have been frozen
        await freezing.thaw(machine, live)
    # In memory first: on a full disk the older record, `pausing`, leads to the same after a restart.
    live.record = msgspec.structs.replace(live.record, state=next_state(live.record.state, "not_saved"))
    with contextlib.suppress(OSError):
        machine.journal.write(live.record)
    freezing.announce(machine, live)
    if live.record.init is None or not machine.driver(live.record).is_alive(live.record.init):
        await kill.end(machine, sandbox_id, "exited")


async def put_away(machine: Machine, live: Live) -> None:
    """Take away what the kernel has of a sandbox that is safe on disk; what it refuses is tried again."""
    while True:
        try:
            await kill.dismantle(machine, live, keeps_record=True)
        except (OSError, Internal) as error:
            sandbox_id = live.record.request.sandbox_id
            log.warning("sandbox.removal_failed", sandbox_id=sandbox_id, error=str(error))
            await asyncio.sleep(kill.RETRY_S)
        else:
            return


def told(error: Exception) -> Exception:
    """What the caller is told of a save that has failed."""
    if not isinstance(error, OSError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotEnoughSpace(
            "no space left for the image of a sandbox", hint="free space in the state folder"
        )
    return Internal(f"cannot keep the sandbox: {error}")
