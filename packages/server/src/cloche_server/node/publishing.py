"""Make a finished build one that sandboxes can be made of, after it was tried; and take one away.

A build has its name once all of it is there: whoever reads the folder of templates sees it whole, or not.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec
import structlog

from cloche_server import isolation_choice
from cloche_server.config import API_UID
from cloche_server.ids import new_sandbox_id
from cloche_server.link import Event
from cloche_server.node import builds, kill, threads, warm_images, warming
from cloche_server.node.assemble import Origin
from cloche_server.node.build_messages import BuildExited, BuildLine, PublishBuild, RemoveBuild
from cloche_server.node.build_programs import Program
from cloche_server.node.demand import Need
from cloche_server.node.durability import sync
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import CreateSandbox
from cloche_server.node.templates import MANIFEST, Template
from cloche_wire.errors import AlreadyExists, ClocheError, Internal, InvalidArgument, NotEnoughSpace

READY_AGAIN_S = 2.0
"""Between two tries of a ready command, as E2B's own builder has it."""
_BUILD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_OUTPUT_BYTES = 64 << 20
_WITHOUT_IMAGE = (
    "Sandboxes run the start command themselves: no image of one that is ready could be made. "
    "It has to be ready within 60 s, and without a network."
)
_LOGIN_SHELL = 'if command -v bash >/dev/null; then exec bash -l -c "$1"; else exec sh -l -c "$1"; fi'

log = structlog.get_logger()


class _Described(Template, frozen=True):
    """What of a manifest a publication needs beside what sandboxes do."""

    build_id: str = ""
    cpu_count: int = 2
    memory_mib: int = 2048


async def publish(machine: Machine, request: PublishBuild) -> AsyncGenerator[Event]:
    """Try a build and publish it; yields the lines of its start command.

    Leaves: on any error no build of that id, and nothing of the trial.

    Raises:
        InvalidArgument: No manifest, the start command failed, or it was not ready in time.
        AlreadyExists: A build of that id is there.
        NotFound: A layer is not there.
        NotEnoughSpace: The disk is full.
    """
    described = _read(machine, request.manifest)
    said: asyncio.Queue[Event | None] = asyncio.Queue(1024)
    need = _need(machine, request, described)
    image = _begin_image(machine, need, described)
    trial = machine.tasks.create_task(_failure(machine, request, described, said))
    is_published = False
    try:
        while (event := await said.get()) is not None:
            yield event
        if (failure := await trial) is not None:
            raise failure
        if image is not None and not await image:
            yield Event("line", BuildLine("stderr", _WITHOUT_IMAGE))
        await threads.in_thread(
            write, machine.config.templates_dir, described.build_id, bytes(request.manifest)
        )
        is_published = True
    except OSError as error:
        raise NotEnoughSpace(f"cannot publish the build: {error.strerror}") from error
    finally:
        await _end(trial, image)
        if not is_published:
            warm_images.remove_of(machine, described.build_id)
    # Somebody will ask for it soon: what makes its sandboxes fast is made from now on.
    machine.demand.note(need, machine.clock.boot_s())
    log.info("build.published", build_id=described.build_id, layers=len(described.layers))


def _need(machine: Machine, request: PublishBuild, described: _Described) -> Need:
    """What sandboxes of the build are asked for as.

    Raises:
        PermissionDenied: Their isolation is weaker than the operator permits.
        UnsupportedOption: This node lacks it.
    """
    default, allowed = machine.drivers.default, machine.config.allow_isolation
    isolation = isolation_choice.settle("", described.isolation, default, allowed)
    machine.drivers.ready(isolation)
    size = (described.cpu_count, described.memory_mib)
    return Need(request.team_id, described.build_id, *size, isolation)


def _begin_image(machine: Machine, need: Need, described: _Described) -> asyncio.Task[bool] | None:
    """Have the image of a build with a start command made beside its trial, so that its first sandbox has it.

    Without one, an image saves a second or two, which whoever publishes would wait for: it is made later.
    """
    if not described.start_cmd or not machine.drivers.of(need.isolation).capabilities().memory_snapshot:
        return None
    origin = Origin(described, machine.layers.folders(described.layers), machine.tree.path)
    return machine.tasks.create_task(warming.make(machine, need, lambda: None, origin))


async def _end(*tasks: asyncio.Task[Any] | None) -> None:
    begun = {task for task in tasks if task is not None}
    for task in begun:
        task.cancel()
    await asyncio.wait(begun)


async def unpublish(machine: Machine, request: RemoveBuild) -> None:
    """Take a build away; sandboxes that were made of it live on, since its layers stay. Idempotent.

    Raises:
        InvalidArgument: It has a root of its own, which may be in use.
    """
    if not _BUILD_ID.match(request.build_id):
        raise InvalidArgument(f"not a build id: {request.build_id[:80]!r}")
    folder = machine.config.templates_dir / request.build_id
    if not (folder / MANIFEST).exists():
        return
    if not machine.templates.read(request.build_id).layers:
        raise InvalidArgument(f"not a build of layers: {request.build_id}")
    hidden = folder.with_name(f".superseded-{request.build_id}")
    folder.rename(hidden)
    (hidden / MANIFEST).unlink()
    hidden.rmdir()
    warm_images.remove_of(machine, request.build_id)


def _read(machine: Machine, manifest: msgspec.Raw) -> _Described:
    try:
        described = msgspec.json.decode(manifest, type=_Described)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"not a manifest: {error}") from error
    if not _BUILD_ID.match(described.build_id) or not described.layers:
        raise InvalidArgument("not a manifest of a build of layers")
    if (machine.config.templates_dir / described.build_id).exists():
        raise AlreadyExists(f"build exists: {described.build_id}")
    return described


def write(templates_dir: Path, build_id: str, manifest: bytes) -> None:
    """Have a build be there from here on, also after a crash of the machine.

    Raises:
        OSError: The disk is full or broken; it is not there.
    """
    work = templates_dir / f".building-{build_id}"
    work.mkdir(mode=0o750, exist_ok=True)
    os.chown(work, 0, API_UID)
    path = work / MANIFEST
    path.write_bytes(manifest)
    path.chmod(0o644)
    sync(path)
    sync(work)
    work.rename(templates_dir / build_id)
    sync(templates_dir)


async def _failure(
    machine: Machine, request: PublishBuild, described: _Described, said: asyncio.Queue[Event | None]
) -> ClocheError | None:
    """Why a build cannot be published; a task of the node's that raised would end the node."""
    try:
        await _try(machine, request, described, said)
    except ClocheError as error:
        return error
    except Exception:
        log.exception("build.trial_failed", build_id=described.build_id)
        return Internal("the trial of the build failed")
    return None


async def _try(
    machine: Machine, request: PublishBuild, described: _Described, said: asyncio.Queue[Event | None]
) -> None:
    """Start a sandbox as it will be started, run its start command until it is ready, and end it.

    Without a command of the template there is nothing to see how it was started: that its layers make a root
    over which an agent serves shows as well in one that goes on from an image, which boots no kernel.
    """
    sandbox_id = new_sandbox_id()
    asked = CreateSandbox(
        sandbox_id=sandbox_id,
        team_id=request.team_id,
        template_id="",
        build_id=described.build_id,
        timeout_s=round(request.ready_timeout_s),
        access_token=token_hex(32),
        cpu_count=described.cpu_count,
        memory_mib=described.memory_mib,
    )
    try:
        # Its lines are wanted: it is run from here, and not by the agent.
        plain = msgspec.structs.replace(described, start_cmd="", ready_cmd="")
        origin = Origin(plain, machine.layers.folders(described.layers), machine.tree.path)
        has_command = bool(described.start_cmd or described.ready_cmd)
        live = await builds.start(machine, asked, origin, keeps_layer=not has_command)
        await _until_ready(machine, live, described, request.ready_timeout_s, said)
    finally:
        await kill.end_in_turn(machine, sandbox_id, "killed")
        if said.full():
            said.get_nowait()  # who listens hears the end rather than one line more
        said.put_nowait(None)


async def _until_ready(
    machine: Machine, live: Live, described: _Described, timeout_s: float, said: asyncio.Queue[Event | None]
) -> None:
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
            running = None
            if described.start_cmd:
                running = tasks.create_task(_run_start(machine, live, described, timeout_s, said))
            while described.ready_cmd and await _status(machine, live, described, timeout_s) != 0:  # noqa: ASYNC110 - only it knows
                await asyncio.sleep(READY_AGAIN_S)
            if running is not None:
                running.cancel()
    except TimeoutError as error:
        raise InvalidArgument(
            f"the template was not ready in {timeout_s:g} s: {described.ready_cmd}"
        ) from error
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


async def _run_start(
    machine: Machine, live: Live, described: _Described, timeout_s: float, said: asyncio.Queue[Event | None]
) -> None:
    program = _program(described, described.start_cmd, timeout_s)
    async with aclosing(builds.lines(machine, live, program, _OUTPUT_BYTES)) as events:
        async for event in events:
            if isinstance(event.data, BuildLine):
                await said.put(event)
            elif isinstance(event.data, BuildExited) and event.data.status != 0:
                raise InvalidArgument(
                    f"failed to run command '{described.start_cmd}': exit status {event.data.status}"
                )


async def _status(machine: Machine, live: Live, described: _Described, timeout_s: float) -> int:
    program = _program(described, described.ready_cmd, timeout_s)
    async with aclosing(builds.lines(machine, live, program, _OUTPUT_BYTES)) as events:
        async for event in events:
            if isinstance(event.data, BuildExited):
                return event.data.status
    return -1


def _program(described: _Described, command: str, timeout_s: float) -> Program:
    argv = ("/bin/sh", "-c", _LOGIN_SHELL, "sh", command)
    return Program(argv, described.default_user, described.default_workdir, {}, timeout_s)
