"""The node's process: put the parts together, reconcile, answer the api and the edge."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import msgspec
import structlog

from cloche_server import link, resolvers
from cloche_server.clock import SystemClock
from cloche_server.config import API_UID, EDGE_UID, EGRESS_UID, VOLUMES_FIRST_ID, Config
from cloche_server.isolation import syscalls
from cloche_server.isolation.base import ID_RANGE
from cloche_server.isolation.container.driver import ContainerDriver
from cloche_server.isolation.gvisor.driver import GvisorDriver
from cloche_server.isolation.identity import boot_id
from cloche_server.node import (
    ahead,
    build_methods,
    create,
    dial,
    dns,
    egress,
    freezing,
    idle,
    kill,
    messages,
    network_sweep,
    pause,
    reaper,
    reconcile,
    resume,
    snapshots,
    threads,
    volume_requests,
    zygotes,
)
from cloche_server.node.demand import Demand
from cloche_server.node.drivers import Drivers
from cloche_server.node.families import Families
from cloche_server.node.journal import Journal
from cloche_server.node.logs import LogKeeper
from cloche_server.node.machine import Machine, Trash
from cloche_server.node.memory_guard import MemoryGuard
from cloche_server.node.metrics import Sampler
from cloche_server.node.network import Network
from cloche_server.node.pulling import methods as pulling_methods
from cloche_server.node.pulling import pulls
from cloche_server.node.runtime_tree import RuntimeTree
from cloche_server.node.slots import Block, BlockProbe, Slots, claim_block
from cloche_server.node.volumes import Volumes
from cloche_wire.errors import Unimplemented

BLOCKS_FOLDER = Path("/run/cloche/blocks")

log = structlog.get_logger()


def run(config: Config, tree: RuntimeTree) -> None:
    """Run the node until SIGTERM, which leaves the sandboxes running (`drain` ends them).

    Args:
        config: The server's settings.
        tree: What the agents of new sandboxes run on.

    Raises:
        Unavailable: The machine lacks something; the message names it.
    """
    block = claim_block(BLOCKS_FOLDER, config.state_dir, BlockProbe())
    # SAFETY: made by a fork, so before any thread of ours exists.
    content = syscalls.user_namespace([(0, VOLUMES_FIRST_ID, ID_RANGE)])
    known = ContainerDriver(block.number), GvisorDriver(block.number, config.tools_dir)
    asyncio.run(serve(config, block, Drivers(config.isolation, known), tree, content))


async def serve(
    config: Config, block: Block, drivers: Drivers, tree: RuntimeTree, content: int | None = None
) -> None:
    """Serve with the given drivers until SIGTERM.

    Args:
        config: The server's settings.
        block: Claimed for this server.
        drivers: Not prepared yet.
        tree: What the agents of new sandboxes run on.
        content: A user namespace with the ids of the process that serves volumes' content; None without one.
    """
    for folder, mode in (("sandboxes", 0o700), ("run", 0o711), ("run/agents", 0o711), ("run/content", 0o711)):
        (config.state_dir / folder).mkdir(mode=mode, parents=True, exist_ok=True)
    network = Network(block, config.egress.exceptions)
    drivers.prepare(tree.program())
    journal = Journal(config.journal_dir)
    network.prepare(egress.policies(journal.read_all()))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    try:
        async with asyncio.TaskGroup() as tasks:
            slots = Slots(config.limits.max_sandboxes + config.ahead.most)
            trash = Trash(config.state_dir / "trash")
            machine = Machine(
                config=config,
                clock=SystemClock(),
                drivers=drivers,
                block=block,
                slots=slots,
                families=Families(slots),
                network=network,
                journal=journal,
                tree=tree,
                tasks=tasks,
                trash=trash,
                boot_id=boot_id(),
                volumes=Volumes(config.volumes_dir, config.volumes, content),
                demand=Demand(config.ahead),
            )
            await _serve_machine(machine, stopping)
    except* asyncio.CancelledError:
        pass
    drivers.close()


async def _serve_machine(machine: Machine, stopping: asyncio.Event) -> None:
    tasks, config = machine.tasks, machine.config
    keeper = LogKeeper(machine)
    machine.before_removal = keeper.keep_last
    tasks.create_task(machine.trash.empty_for_ever())
    await reconcile.reconcile(machine)
    pulls.remove_leftovers(machine)
    stub = dns.Stub(
        machine.block.gateway, resolvers.upstream_resolvers(config.egress.resolvers), _may_ask(machine)
    )
    control = link.listen(config.node_socket, owner_uid=API_UID)
    edge = link.listen(config.edge_socket, owner_uid=EDGE_UID)
    content = link.listen(config.open_socket, owner_uid=VOLUMES_FIRST_ID)
    tasks.create_task(reaper.run(machine))
    tasks.create_task(network_sweep.run(machine))
    tasks.create_task(ahead.run(machine))
    tasks.create_task(stub.serve())
    sampler = Sampler(machine)
    tasks.create_task(sampler.run())
    tasks.create_task(MemoryGuard(machine).run())
    tasks.create_task(_serve_link(control, control_handler(machine, sampler, keeper)))
    tasks.create_task(_serve_link(edge, edge_handler(machine, sampler)))
    names = link.listen(config.egress_socket, owner_uid=EGRESS_UID)
    tasks.create_task(_serve_link(names, egress_handler(machine)))
    tasks.create_task(_serve_link(content, content_handler(machine)))
    log.info("node.ready", block=machine.block.number, isolation=machine.drivers.default)
    await stopping.wait()
    await zygotes.close_all(machine)
    if not machine.live:
        await machine.trash.wait_until_empty()
        machine.network.close()
        machine.block.release()
    raise asyncio.CancelledError


def _may_ask(machine: Machine) -> dns.MayAsk:
    def may_ask(address: str, name: str | None) -> bool:
        live = machine.at_address(address)
        return live is not None and egress.may_ask(live.record, name)

    return may_ask


async def _serve_link(listener: socket.socket, handler: link.Handler) -> None:
    with listener:
        await link.serve(listener, handler)


def control_handler(machine: Machine, sampler: Sampler, keeper: LogKeeper) -> link.Handler:
    """Answers of the control socket; see `messages`."""

    async def create_sandbox(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await create.create(machine, link.decode(params, messages.CreateSandbox)))

    async def kill_sandbox(params: msgspec.Raw) -> link.Answer:
        request = link.decode(params, messages.KillSandbox)
        await kill.end_or_forget(machine, request.sandbox_id, request.reason)
        return link.Answer({})

    async def set_timeout(params: msgspec.Raw) -> link.Answer:
        request = link.decode(params, messages.SetTimeout)
        state = reaper.set_timeout(machine, request)
        if request.is_needed:
            await freezing.need(machine, machine.find(request.sandbox_id))
        return link.Answer(state)

    async def set_egress(params: msgspec.Raw) -> link.Answer:
        await egress.set_egress(machine, link.decode(params, messages.SetEgress))
        return link.Answer({})

    async def list_sandboxes(_: msgspec.Raw) -> link.Answer:
        running = [live.record for live in machine.live.values() if live.record.state in _SHOWN]
        return link.Answer([record.public() for record in (*running, *machine.paused.values())])

    async def health(_: msgspec.Raw) -> link.Answer:
        return link.Answer({})

    async def drain(_: msgspec.Raw) -> link.Answer:
        machine.draining = True
        await kill.end_all(machine, "killed")
        return link.Answer({})

    async def watch(_: msgspec.Raw) -> link.Answer:
        events = machine.ends.listen()
        return link.Answer(ahead.ready(machine), events=events)

    return _dispatch(
        {
            "create": create_sandbox,
            "kill": kill_sandbox,
            "set_timeout": set_timeout,
            "set_egress": set_egress,
            "list": list_sandboxes,
            "health": health,
            "drain": drain,
            "watch": watch,
            **_image_methods(machine),
            **_volume_methods(machine),
            **build_methods.of(machine),
            **pulling_methods.of(machine),
            **_observing_methods(sampler, keeper),
        }
    )


_SHOWN = ("running", "pausing", "resuming")


def _image_methods(machine: Machine) -> dict[str, link.Method]:
    async def pause_sandbox(params: msgspec.Raw) -> link.Answer:
        await pause.pause(machine, link.decode(params, messages.PauseSandbox))
        return link.Answer({})

    async def freeze_sandbox(params: msgspec.Raw) -> link.Answer:
        await freezing.freeze(machine, link.decode(params, messages.FreezeSandbox))
        return link.Answer({})

    async def resume_sandbox(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await resume.resume(machine, link.decode(params, messages.ResumeSandbox)))

    async def take_snapshot(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await snapshots.take(machine, link.decode(params, messages.TakeSnapshot)))

    async def remove_snapshot(params: msgspec.Raw) -> link.Answer:
        await snapshots.remove(machine, link.decode(params, messages.RemoveSnapshot))
        return link.Answer({})

    return {
        "pause": pause_sandbox,
        "freeze": freeze_sandbox,
        "resume": resume_sandbox,
        "snapshot": take_snapshot,
        "remove_snapshot": remove_snapshot,
    }


def _volume_methods(machine: Machine) -> dict[str, link.Method]:
    async def create_volume(params: msgspec.Raw) -> link.Answer:
        await machine.volumes.create(link.decode(params, messages.CreateVolume))
        return link.Answer({})

    async def remove_volume(params: msgspec.Raw) -> link.Answer:
        volume_requests.remove(machine, link.decode(params, messages.RemoveVolume))
        return link.Answer({})

    return {"create_volume": create_volume, "remove_volume": remove_volume}


def _observing_methods(sampler: Sampler, keeper: LogKeeper) -> dict[str, link.Method]:
    async def metrics(params: msgspec.Raw) -> link.Answer:
        return link.Answer(sampler.query(link.decode(params, messages.MetricsQuery)))

    async def logs(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await keeper.query(link.decode(params, messages.LogsQuery)))

    return {"metrics": metrics, "logs": logs}


def edge_handler(machine: Machine, sampler: Sampler) -> link.Handler:
    """Answers of the edge's socket; see `messages`."""

    async def routes(_: msgspec.Raw) -> link.Answer:
        events = machine.routes.listen()
        return link.Answer(machine.routes_now(), events=events)

    async def dial_port(params: msgspec.Raw) -> link.Answer:
        return link.Answer({}, descriptors=(await dial.dial(machine, link.decode(params, messages.Dial)),))

    async def wake(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await resume.wake(machine, link.decode(params, messages.Wake)))

    async def idle_sandbox(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await idle.consider(machine, sampler, link.decode(params, messages.IdleSandbox)))

    return _dispatch({"routes": routes, "dial": dial_port, "wake": wake, "idle": idle_sandbox})


def egress_handler(machine: Machine) -> link.Handler:
    """Answers of the egress's socket; see `messages`."""

    async def listen(_: msgspec.Raw) -> link.Answer:
        listener = await threads.in_thread(machine.network.listen_for_egress)
        return link.Answer({}, descriptors=(listener,))

    async def policy(params: msgspec.Raw) -> link.Answer:
        return link.Answer(egress.name_policy(machine, link.decode(params, messages.AskPolicy)))

    async def changes(_: msgspec.Raw) -> link.Answer:
        return link.Answer({}, events=machine.policies.listen())

    return _dispatch({"listen": listen, "policy": policy, "changes": changes})


def content_handler(machine: Machine) -> link.Handler:
    """Answers of the socket of the volumes' content; see `messages`."""

    async def open_volume(params: msgspec.Raw) -> link.Answer:
        mount = await machine.volumes.open(link.decode(params, messages.OpenVolume))
        return link.Answer({}, descriptors=(mount,))

    return _dispatch({"open": open_volume})


def _dispatch(methods: dict[str, link.Method]) -> link.Handler:
    async def handle(method: str, params: msgspec.Raw) -> link.Answer:
        if method not in methods:
            raise Unimplemented(f"no such method: {method}")
        return await methods[method](params)

    return handle
