"""Create a sandbox: a list of steps, each with an undo that `kill.end` knows too."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import msgspec
import structlog

from cloche_server.config import EDGE_UID
from cloche_server.ids import is_sandbox_id
from cloche_server.isolation.base import ResourceLimits, SandboxSpec
from cloche_server.node import agent_link, kill, volume_requests
from cloche_server.node.egress import check_policy
from cloche_server.node.journal import Record
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
_AGENT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

log = structlog.get_logger()


class _Template(msgspec.Struct, frozen=True):
    """What the node reads of a template's manifest."""

    rootfs: str
    default_user: str = "user"
    default_workdir: str = "/home/user"
    env: dict[str, str] = {}


async def create(machine: Machine, request: CreateSandbox) -> SandboxState:
    """Make a sandbox and return when its agent has answered.

    Leaves: state running, journalled, its route published; on any error nothing of it.

    Raises:
        Unavailable: The node is draining.
        InvalidArgument: The request holds what the api should not have let through.
        TemplateNotFound: No finished build of that id lies here.
        VolumeNotFound: No such volume of that team.
        ResourceExhausted: The limit of sandboxes is reached.
        Internal: A step failed; the message names it.
    """
    if machine.draining:
        raise Unavailable("the server is stopping")
    _check(request)
    volume_requests.check_mounts(machine, request)
    if request.sandbox_id in machine.live:
        raise AlreadyExists(f"sandbox exists: {request.sandbox_id}")
    template = _read_template(machine, request.build_id)
    live = Live(_first_record(machine, request), builder=asyncio.current_task())
    machine.live[request.sandbox_id] = live
    try:
        machine.journal.write(live.record)
        await _build(machine, live, template)
        machine.move(live, "started")
        live.builder = None
    except asyncio.CancelledError:
        live.built.set()
        if live.record.state == "creating":
            raise  # the node itself ends: its next start undoes this
        await live.gone.wait()
        raise Unavailable("the sandbox was ended before it was ready") from None
    except Exception as error:
        live.builder = None
        await kill.end(machine, request.sandbox_id, "failed")
        told = _told(error)
        if told is error:
            raise
        raise told from error
    machine.publish_route(live.record)
    machine.deadlines_changed.set()
    kill.watch(machine, live)
    log.info("sandbox.created", sandbox_id=request.sandbox_id, slot=live.record.slot)
    return live.record.public()


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


def _first_record(machine: Machine, request: CreateSandbox) -> Record:
    now = machine.clock.now()
    return Record(
        request=request,
        state="creating",
        slot=machine.slots.take(),
        started_at=now,
        end_at=now + timedelta(seconds=request.timeout_s),
        deadline_boot_s=machine.clock.boot_s() + request.timeout_s,
        boot_id=machine.boot_id,
        isolation=machine.driver.capabilities().name,
    )


async def _build(machine: Machine, live: Live, template: _Template) -> None:
    record = live.record
    request = record.request
    namespace = await kill.in_thread(_make_network, machine, live)
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
            env={"PATH": _AGENT_PATH, "LANG": "C.UTF-8"},
            etc_files=_etc_files(machine, request.sandbox_id),
            mounts=await volume_requests.open_mounts(machine, request, stack),
        )
        init = await machine.driver.start(spec)
    machine.note(live, msgspec.structs.replace(record, init=init))
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


def _make_network(machine: Machine, live: Live) -> int:
    record = live.record
    request = record.request
    namespace = machine.network.create(record.slot, request.egress, online=request.allow_internet)
    live.network_namespace = namespace  # kept here: a result that comes after a cancellation would be lost
    return namespace


def _read_template(machine: Machine, build_id: str) -> _Template:
    path = machine.config.templates_dir / build_id / "manifest.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Template)
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
