"""Create a sandbox: a list of steps, each with an undo that `kill.end` knows too."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import structlog

from cloche_server.config import EDGE_UID
from cloche_server.ids import is_sandbox_id
from cloche_server.isolation.base import ResourceLimits, SandboxSpec
from cloche_server.node import agent_link, kill, volume_requests
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
    TemplateNotFound,
    Unavailable,
)

_BUILD_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62})\Z")
AGENT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

log = structlog.get_logger()


class Template(msgspec.Struct, frozen=True):
    """What the node reads of a template's manifest."""

    rootfs: str
    default_user: str = "user"
    default_workdir: str = "/home/user"
    env: dict[str, str] = {}
    warm: tuple[str, ...] = ("numpy", "pandas", "matplotlib.pyplot")
    """Python modules that sandboxes made ahead have imported; what the template lacks is passed over."""


async def create(machine: Machine, request: CreateSandbox) -> SandboxState:
    """Make a sandbox, or take the one of that id that was made ahead; return when its agent has answered.

    Leaves: state running, journalled, its route published; on any error nothing of it.

    Raises:
        Unavailable: The node is draining.
        InvalidArgument: The request holds what the api should not have let through, or the sandbox made
            ahead is of another kind.
        TemplateNotFound: No finished build of that id lies here.
        VolumeNotFound: No such volume of that team.
        ResourceExhausted: The limit of sandboxes is reached.
        Internal: A step failed; the message names it.
    """
    if machine.draining:
        raise Unavailable("the server is stopping")
    _check(request)
    volume_requests.check_mounts(machine, request)
    template = read_template(machine, request.build_id)
    live = await _made_ahead(machine, request)
    machine.demand.note(Need.of(request), machine.clock.boot_s())
    if live is not None:
        _claim(machine, live, request)
    else:
        live = first_live(machine, request)
    async with making(machine, live):
        if live.record.init is None:
            await assemble(machine, live, template)
            await _introduce(machine, request, template)
        else:
            await _hand_over(machine, live, template)
        machine.move(live, "started")
    machine.publish_route(live.record)
    machine.deadlines_changed.set()
    kill.watch(machine, live)
    log.info("sandbox.created", sandbox_id=request.sandbox_id, slot=live.record.slot)
    return live.record.public()


async def _hand_over(machine: Machine, live: Live, template: Template) -> None:
    """Give a sandbox made ahead its token, and the network that its request asks for; it had neither.

    Both at once: until the policy holds it has no network, and until the route is published nobody has a way
    to use the token.
    """
    request = live.record.request
    live.cpu_before_s = machine.driver.usage(request.sandbox_id).cpu_s
    policy, online = request.egress, request.allow_internet
    change = kill.in_thread(machine.network.set_policy, live.record.slot, policy, online=online)
    try:
        async with asyncio.TaskGroup() as steps:
            steps.create_task(change)
            steps.create_task(_introduce(machine, request, template))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures


@asynccontextmanager
async def making(machine: Machine, live: Live) -> AsyncGenerator[None]:
    """Make a sandbox in this block: it is journalled before, and on any error nothing of it is left after.

    Raises:
        Unavailable: Somebody ended it meanwhile.
        ClocheError: A step of the block failed; OSError is told as one.
    """
    sandbox_id = live.record.request.sandbox_id
    machine.live[sandbox_id] = live
    try:
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
    """From here on it is the request's, and is ended when the rest of the create fails."""
    before = live.record
    live.builder = asyncio.current_task()
    live.record = msgspec.structs.replace(
        _record(machine, request, before.slot), init=before.init, state=next_state(before.state, "claimed")
    )


def _check(request: CreateSandbox) -> None:
    """Refuse what would become a path or a limit of another meaning.

    The api checks all this too, but it is unprivileged and speaks with strangers; this process is root.
    """
    if not is_sandbox_id(request.sandbox_id):
        raise InvalidArgument(f"not a sandbox id: {request.sandbox_id!r}")
    if not _BUILD_ID.match(request.build_id):
        raise InvalidArgument(f"not a build id: {request.build_id!r}")
    if min(request.cpu_count, request.memory_mib) < 1 or request.timeout_s < 0:
        raise InvalidArgument("cpu_count, memory_mib and timeout_s are counts")
    check_policy(request.egress)


def first_live(machine: Machine, request: CreateSandbox) -> Live:
    """A new sandbox, with a slot of its own: one of a family where there is one.

    Raises:
        ResourceExhausted: All are taken.
    """
    slot, family = machine.families.take(Kind.of(request)) or (
        machine.slots.take(),
        None,
    )
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
        isolation=machine.driver.capabilities().name,
    )


async def assemble(machine: Machine, live: Live, template: Template) -> None:
    """Give a sandbox its network, root and limits, and start its agent, which knows nothing yet."""
    record = live.record
    request = record.request
    namespace = await _make_network(machine, live)
    folder = machine.folder(request.sandbox_id)
    folder.mkdir(mode=0o700)
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(listener) for listener in _listen(machine.sockets(request.sandbox_id))
        ]
        spec = SandboxSpec(
            sandbox_id=request.sandbox_id,
            slot=machine.block.machine_slot(record.slot),
            hostname=request.sandbox_id,
            rootfs=machine.config.templates_dir / request.build_id / template.rootfs,
            folder=folder,
            runtime_tree=machine.tree.path,
            limits=ResourceLimits(request.cpu_count, request.memory_mib, machine.config.limits.pids),
            network_namespace=namespace,
            listeners=tuple(listener.fileno() for listener in listeners),
            argv=machine.tree.argv("--envd-fd", "3", "--interpreter-fd", "4"),
            env={"PATH": AGENT_PATH, "LANG": "C.UTF-8"},
            etc_files=_etc_files(machine, request.sandbox_id),
            family=live.family,
            mounts=await volume_requests.open_mounts(machine, request, stack),
        )
        init = await machine.driver.start(spec)
    machine.note(live, msgspec.structs.replace(record, init=init))


async def _introduce(machine: Machine, request: CreateSandbox, template: Template) -> None:
    """Tell the agent whose it is; the sandbox can be used then."""
    await agent_link.initialize(
        machine.sockets(request.sandbox_id) / "envd.sock",
        agent_link.AgentInit(
            access_token=request.access_token,
            env_vars=template.env | request.env,
            default_user=template.default_user,
            default_workdir=template.default_workdir,
            sandbox_id=request.sandbox_id,
            template_id=request.template_id,
            cpu_count=request.cpu_count,
            memory_mib=request.memory_mib,
        ),
        timeout_s=machine.config.limits.start_timeout_s,
    )


async def _make_network(machine: Machine, live: Live) -> int:
    record = live.record
    request = record.request
    # Kept there at once: a result that comes after a cancellation would be lost.
    live.network_namespace = await (
        kill.in_thread(machine.network.new_namespace)
        if live.family is None
        else live.family.network_namespace()
    )
    await kill.in_thread(
        machine.network.create,
        record.slot,
        live.network_namespace,
        request.egress,
        online=request.allow_internet,
    )
    return live.network_namespace


def read_template(machine: Machine, build_id: str) -> Template:
    """What the node has to know of a finished build.

    Raises:
        TemplateNotFound: No finished build of that id lies here.
    """
    path = machine.config.templates_dir / build_id / "manifest.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Template)
    except (OSError, msgspec.DecodeError) as error:
        raise TemplateNotFound(f"no finished build: {build_id}") from error


def _listen(folder: Path) -> list[socket.socket]:
    """Listen where the agent will answer, before it exists: who connects early waits instead of failing."""
    folder.mkdir(mode=0o711, parents=True)
    listeners: list[socket.socket] = []
    for name in ("envd.sock", "run.sock"):
        path = folder / name
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        path.chmod(0o600)
        # SAFETY: the folder was made above and only root can write to it, so the name is the socket just
        # bound.
        os.chown(path, EDGE_UID, EDGE_UID, follow_symlinks=False)
        listener.listen(1024)
        listeners.append(listener)
    return listeners


def _etc_files(machine: Machine, sandbox_id: str) -> dict[str, str]:
    return {
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {sandbox_id}\n::1 localhost ip6-localhost ip6-loopback\n",
        "resolv.conf": f"nameserver {machine.block.gateway}\noptions timeout:3 attempts:2\n",
        "hostname": f"{sandbox_id}\n",
    }


def _told(error: Exception) -> Exception:
    """What the caller is told of a failed step."""
    cause = error.__cause__ if isinstance(error, Internal) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotEnoughSpace("no space left for a sandbox", hint="free space in the state folder")
    return Internal(f"cannot create the sandbox: {error}") if isinstance(error, OSError) else error
