"""Steps of a template's build: sandboxes of the node's own, and the layers that are kept of them.

Such a sandbox has the isolation, the limits and the network of any other. It has no route and is nobody's;
its token is known to the node alone. It ends with the link that it was opened over. See: `build_messages`.
"""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from secrets import token_hex

import msgspec
import structlog

from cloche_server import isolation_choice
from cloche_server.ids import new_sandbox_id
from cloche_server.isolation import overlay
from cloche_server.link import Event
from cloche_server.node import (
    agent_images,
    agent_link,
    assemble,
    build_extraction,
    build_limits,
    build_programs,
    create,
    kill,
    strange_files,
    threads,
)
from cloche_server.node.assemble import Origin
from cloche_server.node.build_messages import (
    BuildEnded,
    BuildExited,
    BuildLine,
    BuildOpened,
    CommitBuild,
    LayerMade,
    OpenBuild,
    PutInBuild,
    RunInBuild,
)
from cloche_server.node.build_programs import Agent, Ended, Output, Program
from cloche_server.node.layers import Layer
from cloche_server.node.machine import Live, Machine
from cloche_server.node.messages import CreateSandbox
from cloche_server.node.templates import Template
from cloche_wire.errors import (
    ClocheError,
    Internal,
    InvalidArgument,
    NotEnoughSpace,
    SandboxNotFound,
    TooLarge,
)

_LINE_BYTES = 16 * 1024
_PUT_TIMEOUT_S = 900.0
_OUR_FILES = (
    "etc/hosts", "etc/resolv.conf", "etc/hostname",
    "run/e2b/.E2B_SANDBOX", "run/e2b/.E2B_SANDBOX_ID", "run/e2b/.E2B_TEMPLATE_ID",
)  # fmt: skip
"""Of each sandbox alone."""
_EXTRACTION = Path(build_extraction.__file__).read_text()
_HERE = Template(rootfs="", default_user="root", default_workdir="")
"""Without a folder: a program that names none starts in its user's home, where `COPY` resolves paths too."""

log = structlog.get_logger()


async def open_build(machine: Machine, request: OpenBuild) -> BuildOpened:
    """Start a sandbox over these layers.

    Leaves: state building, journalled; on any error nothing of it.

    Raises:
        NotFound: A layer is not there.
        NotEnoughSpace: The disk is nearly full.
        ClocheError: As `create`.
    """
    build_limits.require_space(machine)
    asked = CreateSandbox(
        sandbox_id=new_sandbox_id(),
        team_id=request.team_id,
        template_id="",
        build_id=request.build_id,
        timeout_s=life_s(machine, request),
        access_token=token_hex(32),
        cpu_count=request.cpu_count,
        memory_mib=request.memory_mib,
        isolation=request.isolation,
    )
    origin = Origin(_HERE, machine.layers.folders(request.layers), machine.tree.path)
    await start(machine, asked, origin, keeps_layer=True)
    return BuildOpened(asked.sandbox_id)


def life_s(machine: Machine, request: OpenBuild) -> int:
    """When a sandbox of a build ends at the latest: its steps have to end before."""
    return request.timeout_s or round(machine.config.builds.step_timeout_s + _PUT_TIMEOUT_S)


async def start(machine: Machine, asked: CreateSandbox, origin: Origin, *, keeps_layer: bool) -> Live:
    """Start a sandbox of the node's own, for a build: of the isolation that is asked for, or the template's.

    Raises:
        PermissionDenied: That is weaker than the operator permits.
        UnsupportedOption: This node lacks it.
        ClocheError: As `create`.
    """
    default, allowed = machine.drivers.default, machine.config.allow_isolation
    isolation = isolation_choice.settle(asked.isolation, origin.template.isolation, default, allowed)
    asked = msgspec.structs.replace(asked, isolation=isolation)
    machine.drivers.ready(isolation)
    create.check(machine, asked)
    if keeps_layer:
        going_on = await agent_images.over(machine, origin, isolation)
        try:
            return await _start(machine, asked, going_on, keeps_layer=True)
        except Internal as error:
            if going_on.image is None:
                raise
            agent_images.refuse(machine, isolation, error)
    return await _start(machine, asked, origin, keeps_layer=keeps_layer)


async def _start(machine: Machine, asked: CreateSandbox, origin: Origin, *, keeps_layer: bool) -> Live:
    live = create.first_live(machine, asked)
    live.record = msgspec.structs.replace(live.record, is_build=True)
    began_s = machine.clock.boot_s()
    async with create.making(machine, live):
        await assemble.assemble(machine, live, origin, keeps_layer=keeps_layer)
        await assemble.introduce(machine, live, origin)
        machine.move(live, "opened")
    kill.watch(machine, live)
    log.info(
        "build.opened",
        sandbox_id=asked.sandbox_id,
        build_id=asked.build_id,
        slot=live.record.slot,
        goes_on=origin.image is not None,
        ms=round(1000 * (machine.clock.boot_s() - began_s)),
    )
    return live


async def until_ended(machine: Machine, sandbox_id: str, timeout_s: float) -> AsyncIterator[Event]:
    """One event, when the sandbox is gone or its time is over; who listens ends it then."""
    live = machine.live.get(sandbox_id)
    reason = "killed"
    if live is not None:
        try:
            async with asyncio.timeout(timeout_s):
                await live.gone.wait()
            reason = live.record.end_reason or reason
        except TimeoutError:
            reason = "timeout"
    yield Event("ended", BuildEnded(reason))


def find(machine: Machine, sandbox_id: str) -> Live:
    """The sandbox of a build.

    Raises:
        SandboxNotFound: It is not there.
    """
    live = machine.live.get(sandbox_id)
    if live is None or live.record.state != "building":
        raise SandboxNotFound(f"no such sandbox of a build: {sandbox_id}")
    return live


async def run(machine: Machine, live: Live, request: RunInBuild) -> AsyncGenerator[Event]:
    """Run a command; its lines as they come, and at last its exit.

    Whoever does not listen to the end has the sandbox ended with it.

    Raises:
        ClocheError: See `build_messages`; the sandbox is gone then, or its agent refuses the command.
    """
    timeout_s = request.timeout_s or machine.config.builds.step_timeout_s
    program = Program(request.argv, request.user, request.workdir, request.env, timeout_s)
    has_ended = False
    try:
        async with aclosing(lines(machine, live, program, request.max_output_bytes)) as events:
            async for event in events:
                yield event
        has_ended = True
    finally:
        if not has_ended:
            machine.tasks.create_task(kill.end_in_turn(machine, live.record.request.sandbox_id, "killed"))


async def lines(
    machine: Machine, live: Live, program: Program, max_output_bytes: int
) -> AsyncGenerator[Event]:
    """Run a program in a sandbox that is nobody's: `line` events, and `exited`.

    Raises:
        TooLarge: It writes more than it may, to its output or to the disk.
        NotEnoughSpace: The disk is nearly full.
        ClocheError: As `build_programs.run`.
    """
    streams = {"stdout": _Lines("stdout"), "stderr": _Lines("stderr")}
    written = 0
    watch = build_limits.Watch(machine, live)
    async with aclosing(build_programs.run(agent_of(machine, live), program)) as items:
        async for item in items:
            match item:
                case Ended(status):
                    for one in streams.values():
                        for line in one.rest():
                            yield line
                    yield Event("exited", BuildExited(status))
                case Output(stdout, stderr):
                    written += len(stdout) + len(stderr)
                    if written > max_output_bytes:
                        raise TooLarge(f"the command writes more than {max_output_bytes} bytes")
                    for name, data in (("stdout", stdout), ("stderr", stderr)):
                        for line in streams[name].feed(data):
                            yield line
                    watch.check()


class _Lines:
    """Bytes of one stream as lines; what is no UTF-8 is shown as such."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""

    def feed(self, data: bytes) -> list[Event]:
        *whole, self._kept = (self._kept + self._decoder.decode(data)).split("\n")
        events = [self._event(line) for line in whole]
        while len(self._kept) > _LINE_BYTES:
            events.append(self._event(self._kept[:_LINE_BYTES]))
            self._kept = self._kept[_LINE_BYTES:]
        return events

    def rest(self) -> list[Event]:
        kept = self._kept + self._decoder.decode(b"", final=True)
        return [self._event(kept)] if kept else []

    def _event(self, text: str) -> Event:
        stream = "stdout" if self._stream == "stdout" else "stderr"
        return Event("line", BuildLine(stream, text.removesuffix("\r")))


async def put(machine: Machine, live: Live, request: PutInBuild) -> None:
    """Unpack an upload inside, as `build_extraction` does.

    Raises:
        PathNotFound: There is no such upload.
        InvalidArgument: It cannot be unpacked, or does not hold what is asked for; the message says why.
        TooLarge: It holds more than it may.
        ClocheError: As `lines`.
    """
    if not request.target.startswith("/"):
        raise InvalidArgument(f"not an absolute path: {request.target[:200]}")
    descriptor = strange_files.open_file(machine.config.uploads_dir, request.upload)
    limits = (str(request.max_bytes), str(request.max_entries))
    asked = (request.source, request.target, request.owner, request.mode, *limits)
    await unpack(machine, live, descriptor, _EXTRACTION, asked, f"the files of {request.source[:200]}")


async def unpack(
    machine: Machine, live: Live, descriptor: int, program: str, asked: tuple[str, ...], what: str
) -> None:
    """Have a program inside unpack an archive, by the exit codes of `build_extraction`.

    Args:
        machine: This node.
        live: The sandbox.
        descriptor: The archive, on the host; it is closed.
        program: Text of the program: it takes the archive's path there, removes it, and then takes `asked`.
        asked: Further arguments.
        what: What is unpacked, for the error.

    Raises:
        InvalidArgument: It cannot be unpacked; the message says why.
        TooLarge: It holds more than it may.
        ClocheError: As `lines`.
    """
    inside = f"/.cloche-upload-{token_hex(8)}"
    try:
        size = os.fstat(descriptor).st_size
        await build_programs.upload(agent_of(machine, live), descriptor, size, inside)
    finally:
        os.close(descriptor)
    argv = (*machine.tree.python(), "-c", program, inside, *asked)
    said: list[str] = []
    code = 0
    started = Program(argv, "root", "/", {}, _PUT_TIMEOUT_S)
    async with aclosing(lines(machine, live, started, 1 << 20)) as events:
        async for event in events:
            if isinstance(event.data, BuildLine):
                said.append(event.data.text)
            elif isinstance(event.data, BuildExited):
                code = event.data.status
    reason = (said[-1] if said else f"exit status {code}")[:1000]
    if code == build_extraction.TOO_LARGE:
        raise TooLarge(reason)
    if code != 0:
        raise InvalidArgument(f"cannot unpack {what}: {reason}")


async def commit(machine: Machine, request: CommitBuild) -> LayerMade:
    """End the sandbox, and keep what it has written as a layer.

    Leaves: nothing of the sandbox, also on an error.

    Raises:
        SandboxNotFound: It is not there.
        TooLarge: What it has written is more than it may be; nothing is kept.
        NotEnoughSpace: The disk is full.
    """
    async with machine.turns.of(request.sandbox_id):
        live = find(machine, request.sandbox_id)
        agent, folder = agent_of(machine, live), machine.folder(request.sandbox_id)
        try:
            # In order, so that programs write what they have; who does not listen is killed all the same.
            with suppress(ClocheError):
                timeout_s = machine.config.limits.start_timeout_s
                await agent_link.quiesce(agent.address, agent.token, timeout_s=timeout_s)
            await machine.driver(live.record).destroy(request.sandbox_id, folder, live.record.init)
            made = await threads.in_thread(_keep, machine, live)
        except OSError as error:
            raise NotEnoughSpace(f"cannot keep the layer: {error.strerror}") from error
        finally:
            await kill.end(machine, request.sandbox_id, "killed")
    log.info("build.committed", layer=made.layer_id, bytes=made.size_bytes, entries=made.entries)
    return made


def _keep(machine: Machine, live: Live) -> LayerMade:
    upper = machine.folder(live.record.request.sandbox_id) / overlay.UPPER
    _forget_our_files(upper)
    size = build_limits.size_of(machine, live)
    build_limits.check(machine, size, "a layer of")
    team_id = live.record.request.team_id
    if size.entries == 0:
        return LayerMade("", 0, 0, team_id, machine.clock.now())
    name = machine.layers.begin()
    try:
        upper.rename(machine.layers.begun(name))
        return shown(machine.layers.commit(name, team_id, size.size_bytes, size.entries))
    except BaseException:
        machine.layers.abandon(name)
        raise


def shown(layer: Layer) -> LayerMade:
    """A layer, as the api is told of it."""
    return LayerMade(layer.name, layer.size_bytes, layer.entries, layer.team_id, layer.created_at)


def _forget_our_files(upper: Path) -> None:
    """Leave out what the node and the agent have put there, and what is empty after it."""
    for name in _OUR_FILES:
        path = upper / name
        # SAFETY: no process of the sandbox is left. A folder may be a link by now: then nothing is touched.
        parents = [parent for parent in path.parents if parent.is_relative_to(upper) and parent != upper]
        if any(parent.is_symlink() for parent in parents):
            continue
        if path.is_symlink() or path.is_file():
            path.unlink()
        for parent in parents:
            with suppress(OSError):
                parent.rmdir()


def agent_of(machine: Machine, live: Live) -> Agent:
    """Where its agent answers."""
    return Agent(machine.agent_address(live.record), live.record.request.access_token)
