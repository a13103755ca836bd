"""Put a sandbox together: its network, its folder, its first process, and what its agent is told."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from uuid import uuid4

import msgspec

from cloche_server.config import EDGE_UID
from cloche_server.isolation.base import Driver, ResourceLimits, SandboxSpec
from cloche_server.node import agent_link, threads, volume_requests
from cloche_server.node.images import FILES
from cloche_server.node.journal import Record
from cloche_server.node.machine import AGENT_PORT, INTERPRETER_PORT, Live, Machine
from cloche_server.node.templates import Template
from cloche_wire.errors import Internal, SnapshotUnusable

START_COMMAND_TIMEOUT_S = 65.0
"""A little more than the agent waits for it to be ready."""
BUILD_HOSTNAME = "build"
AGENT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Origin(NamedTuple):
    """What a sandbox is made of."""

    template: Template
    layers: tuple[Path, ...]
    """Folders that make its root, uppermost first."""
    runtime_tree: Path
    image: Path | None = None
    """What it goes on from; None: its agent is started."""
    known_token: str = ""
    """The one that its agent goes by before it is told its own."""
    env: Mapping[str, str] = MappingProxyType({})
    """Variables that the sandbox had that the image is of."""
    kept: tuple[str, ...] = ()
    """Names of its uppermost layers, which are there as long as something names them (`kept_files`)."""
    shows_boot_id: bool = False
    """Whether the image has a place for the id of a boot."""
    volume_paths: tuple[str, ...] = ()
    """Where the sandbox had volumes that the image is of."""
    volume_entries: tuple[str, ...] = ()
    """Files and folders in them that the image may need."""
    reboots: bool = False
    """Whether the processes of the image end, and only its files are of interest."""


def from_template(machine: Machine, build_id: str) -> Origin:
    """A sandbox whose agent is started.

    Raises:
        TemplateNotFound: No finished build of that id lies here, or a layer of it is gone.
    """
    template = machine.templates.read(build_id)
    return Origin(template, machine.layers.of_template(build_id, template), machine.tree.path)


async def from_image(machine: Machine, name: str, isolation: str, *, checked_before: bool = False) -> Origin:
    """A sandbox that goes on from an image, or whose agent is started over the files that one names.

    Args:
        machine: Has it.
        name: Whose every byte is read and checked;
        isolation: what it has to be of.
        checked_before: Once in the life of this process is enough.

    Raises:
        SnapshotNotFound: There is none of that name.
        SnapshotUnusable: It is damaged, or of other versions.
        TemplateNotFound: What it stands on is gone.
        UnsupportedOption: This machine lacks that isolation.
    """
    image_format = machine.drivers.ready(isolation).capabilities().image_format
    image, manifest = await machine.images.open(name, image_format, checked_before=checked_before)
    origin = from_template(machine, manifest.build_id)
    if manifest.format == FILES:
        kept = tuple(layer.name for layer in manifest.layers)
        layers = (*machine.layers.folders(kept), *origin.layers)
        return origin._replace(layers=layers, kept=kept, env=manifest.env)
    tree = machine.tree.path.parent / manifest.runtime_tree
    if tree.parent != machine.tree.path.parent or not tree.is_dir():
        raise SnapshotUnusable(f"image {name} needs runtime {manifest.runtime_tree}, which is gone")
    return origin._replace(
        runtime_tree=tree,
        image=image,
        known_token=manifest.access_token,
        env=manifest.env,
        shows_boot_id=manifest.shows_boot_id,
        volume_paths=manifest.volume_paths,
        volume_entries=manifest.volume_entries,
        reboots=not manifest.has_memory,
    )


def image_key(machine: Machine, isolation: str, *more: object) -> str:
    """16 digits that are others where an image of processes made here would be: for its name.

    Requires: the driver is ready.
    """
    image_format = machine.drivers.of(isolation).capabilities().image_format
    # The limit of processes goes with an image: it is of the kernel inside.
    made_as = machine.tree.path.name, image_format, machine.config.limits.pids, *more
    return hashlib.sha256(repr(made_as).encode()).hexdigest()[:16]


async def assemble(machine: Machine, live: Live, origin: Origin, *, keeps_layer: bool = False) -> None:
    """Give a sandbox its network, root and limits, and start its agent, or have it go on."""
    record = live.record
    request = record.request
    driver = machine.driver(record)
    namespace = await _make_network(machine, live)
    folder = machine.folder(request.sandbox_id)
    folder.mkdir(mode=0o700)
    if record.layers:
        machine.layers.folders(record.layers)  # nobody named them while they were looked at
    with ExitStack() as stack:
        listeners: list[int] = []
        reached_by = ("--envd-port", str(AGENT_PORT), "--interpreter-port", str(INTERPRETER_PORT))
        if driver.capabilities().listeners:
            made = _listen(machine.sockets(request.sandbox_id))
            listeners = [stack.enter_context(listener).fileno() for listener in made]
            reached_by = ("--envd-fd", "3", "--interpreter-fd", "4")
        spec = SandboxSpec(
            sandbox_id=request.sandbox_id,
            slot=machine.block.machine_slot(record.slot),
            hostname=_hostname(record),
            layers=origin.layers,
            folder=folder,
            runtime_tree=origin.runtime_tree,
            limits=ResourceLimits(request.cpu_count, request.memory_mib, machine.config.limits.pids),
            network_namespace=namespace,
            listeners=tuple(listeners),
            argv=machine.tree.argv(*reached_by),
            env={"PATH": AGENT_PATH, "LANG": "C.UTF-8"},
            etc_files=_etc_files(machine, _hostname(record)),
            family=live.family,
            mounts=await volume_requests.open_mounts(machine, request, stack),
            keeps_layer=keeps_layer,
            boot_id=_boot_id(driver, record, origin),
            image=origin.image,
        )
        try:
            init = await driver.start(spec)
        except Internal as error:
            await volume_requests.check_entries(machine, request, origin.volume_entries, error)
            raise
    made = {"runtime_tree": origin.runtime_tree.name, "shown_boot_id": spec.boot_id}
    machine.note(live, msgspec.structs.replace(record, init=init, **made))


def _boot_id(driver: Driver, record: Record, origin: Origin) -> str:
    """A new one, but for a sandbox that goes on with its memory: its kernel is the one that it was.

    Copies of one are other sandboxes, and must not be seen to stand on one machine.
    """
    if not driver.capabilities().memory_snapshot:
        return ""
    if origin.image is not None and not origin.shows_boot_id:
        return ""
    goes_on = origin.image is not None and not origin.reboots
    return (goes_on and record.shown_boot_id) or str(uuid4())


async def until_up(machine: Machine, live: Live) -> None:
    """Wait until an agent answers that is nobody's yet, and stays so.

    Raises:
        Internal: It does not, in time.
    """
    address, timeout_s = machine.agent_address(live.record), machine.config.limits.start_timeout_s
    await agent_link.until_up(address, timeout_s=timeout_s)


async def warm_up(machine: Machine, live: Live, origin: Origin) -> None:
    """Have an agent that is nobody's yet run what its template starts with, and import what that names.

    Raises:
        Internal: It refuses, or takes too long.
    """
    template = origin.template
    hostname, etc_files = _names(machine, live, origin)
    await agent_link.prepare(
        machine.agent_address(live.record),
        agent_link.AgentPreparation(
            template.env,
            template.warm,
            template.default_user,
            template.default_workdir,
            template.start_cmd,
            template.ready_cmd,
            hostname,
            etc_files,
            origin.image is not None,
        ),
        timeout_s=machine.config.limits.start_timeout_s,
    )


async def until_ready(
    machine: Machine, live: Live, origin: Origin, *, timeout_s: float = START_COMMAND_TIMEOUT_S
) -> None:
    """Wait until the start command is ready, where the template has one; others are made meanwhile.

    Raises:
        Internal: It has failed, or was not ready in time.
    """
    if not origin.template.start_cmd:
        return
    token = live.record.request.access_token
    live.is_waiting = True
    machine.demand.changed.set()
    try:
        await agent_link.until_ready(machine.agent_address(live.record), token, timeout_s=timeout_s)
    finally:
        live.is_waiting = False


async def introduce(machine: Machine, live: Live, origin: Origin, *, is_warm: bool = False) -> None:
    """Tell the agent whose it is; the sandbox can be used then. A warm one knows its names by `warm_up`."""
    request, template = live.record.request, origin.template
    address, timeout_s = machine.agent_address(live.record), machine.config.limits.start_timeout_s
    if origin.reboots:
        await agent_link.quiesce(address, origin.known_token, timeout_s=timeout_s)
    hostname, etc_files = ("", {}) if is_warm else _names(machine, live, origin)
    await agent_link.initialize(
        address,
        agent_link.AgentInit(
            access_token=request.access_token,
            env_vars={**template.env, **origin.env, **request.env},
            default_user=template.default_user,
            default_workdir=template.default_workdir,
            sandbox_id=request.sandbox_id,
            template_id=request.template_id,
            cpu_count=request.cpu_count,
            memory_mib=request.memory_mib,
            hostname=hostname,
            etc_files=etc_files,
            start_cmd=template.start_cmd,
            ready_cmd=template.ready_cmd,
            restored=origin.image is not None and not is_warm,
        ),
        known_token=origin.known_token,
        timeout_s=timeout_s,
    )


async def _make_network(machine: Machine, live: Live) -> int:
    record = live.record
    request = record.request
    # Kept there at once: a result that comes after a cancellation would be lost.
    live.network_namespace = await (
        threads.in_thread(machine.network.new_namespace)
        if live.family is None
        else live.family.network_namespace()
    )
    await threads.in_thread(
        machine.network.create,
        record.slot,
        live.network_namespace,
        request.egress,
        online=request.allow_internet,
    )
    return live.network_namespace


def _names(machine: Machine, live: Live, origin: Origin) -> tuple[str, dict[str, str]]:
    """The sandbox's name and files below /etc, as far as its agent has to write them.

    That is where a driver writes none into the root, or those of another sandbox are in it by now.
    """
    if origin.image is None and machine.driver(live.record).capabilities().listeners:
        return "", {}
    hostname = _hostname(live.record)
    return hostname, _etc_files(machine, hostname)


def _hostname(record: Record) -> str:
    """Its id; sandboxes of builds have one name for all, so that what a step leaves does not depend on it."""
    return BUILD_HOSTNAME if record.is_build else record.request.sandbox_id


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


def _etc_files(machine: Machine, hostname: str) -> dict[str, str]:
    return {
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n",
        "resolv.conf": f"nameserver {machine.block.gateway}\noptions timeout:3 attempts:2\n",
        "hostname": f"{hostname}\n",
    }
