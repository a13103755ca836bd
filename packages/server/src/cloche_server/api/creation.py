"""From a row `creating` to a sandbox that runs; on any error nothing of it is left.

At most once: the row is there before a node is asked to make one, and whatever a create may have left is
killed before its row ends. One made ahead is there anyway: its row is written once, when it runs and before
anybody is told. What a killed api leaves, row or sandbox, `reconcile` clears away.
"""

from collections.abc import Awaitable, Callable

import anyio
import msgspec
import structlog

from cloche_server.api.control import ControlPlane
from cloche_server.api.network_options import Egress
from cloche_server.node.messages import CreateSandbox, SandboxReady, VolumeMount
from cloche_server.store.sandboxes import SandboxRecord
from cloche_wire.errors import ClocheError, ResourceExhausted, Unavailable, UnsupportedOption

CLEAN_UP_TIMEOUT_S = 10.0

log = structlog.get_logger()


def order_of(
    record: SandboxRecord, egress: Egress, *, isolation: str, timeout_s: int, mounts: tuple[VolumeMount, ...]
) -> CreateSandbox:
    """Return what a node is to make of a row, without what no row keeps: `env`, the snapshot of a fork."""
    idle = record.lifecycle.get("idle", {})
    return CreateSandbox(
        record.id,
        record.team_id,
        record.template_id,
        record.build_id,
        timeout_s,
        record.access_token,
        record.traffic_token,
        metadata=record.metadata,
        cpu_count=record.cpu_count,
        memory_mib=record.memory_mib,
        allow_internet=egress.allow_internet,
        mask_request_host=record.mask_request_host,
        volume_mounts=mounts,
        egress=egress.policy,
        https_ports=tuple(record.network.get("httpsPorts", ())),
        on_timeout=record.lifecycle.get("onTimeout", "kill"),
        pause_memory=record.timeout_pause_mode == "full",
        auto_resume=record.lifecycle.get("autoResume", False),
        snapshot_id=record.snapshot_id,
        isolation=isolation,
        idle_after_s=idle.get("afterSeconds", 0),
        idle_action=idle.get("action", "freeze"),
    )


async def start(control: ControlPlane, record: SandboxRecord, order: CreateSandbox) -> SandboxRecord:
    """Creating → running; on any error → ended, with nothing left on a node that can be reached.

    Requires: the row is written, and held in `control.creations`.
    """
    return await _start(control, record, order, control.store.sandboxes.mark_running)


async def use(
    control: ControlPlane, ready: SandboxReady, record: SandboxRecord, order: CreateSandbox
) -> SandboxRecord:
    """Have a sandbox made ahead become the caller's.

    Requires: there is no row, and the sandbox is held in `control.creations`.
    Leaves: its row `running`; on any error none that lives, and nothing on a node that can be reached.
    """
    is_given = False

    async def keep(running: SandboxRecord) -> bool:
        nonlocal is_given
        is_given = True
        await control.store.sandboxes.add_running(running, max_running=control.config.limits.max_sandboxes)
        return not control.creations.has_ended(running.id)

    try:
        return await _start(control, record, order, keep)
    except (ResourceExhausted, UnsupportedOption):
        if not is_given:
            control.placement.ready.add(ready)  # its node has left it as it was
        raise


async def _start(
    control: ControlPlane,
    record: SandboxRecord,
    order: CreateSandbox,
    keep: Callable[[SandboxRecord], Awaitable[bool]],
) -> SandboxRecord:
    """Have it run, and keep that: write its row, which says False when it has ended meanwhile."""
    began_s = control.clock.boot_s()
    try:
        state = await control.placement.create(order, timeout_s=control.config.limits.start_timeout_s)
        running = msgspec.structs.replace(
            record,
            state="running",
            started_at=state.started_at,
            end_at=state.end_at,
            isolation=state.isolation,
        )
        if not await keep(running):
            raise Unavailable(f"sandbox ended while it was made: {record.id}")
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await _abandon(control, record, error)
        raise
    took_ms = round(1000 * (control.clock.boot_s() - began_s))
    log.info("sandbox.created", sandbox_id=record.id, team_id=record.team_id, ms=took_ms)
    return running


async def _abandon(control: ControlPlane, record: SandboxRecord, cause: BaseException) -> None:
    log.warning("sandbox.create_failed", sandbox_id=record.id, error=f"{type(cause).__name__}: {cause}")
    with anyio.move_on_after(CLEAN_UP_TIMEOUT_S):
        try:
            await control.placement.kill(record.id, "failed")
        except ClocheError as error:
            # Not there, as it should be; or the node is away, and the next reconciliation kills it.
            log.debug("sandbox.nothing_to_abandon", sandbox_id=record.id, error=str(error))
    try:
        now = control.clock.now()
        await control.store.sandboxes.mark_ended(record.team_id, record.id, "failed", now)
    except ClocheError as error:
        # The row stays `creating` with nobody making it: the next reconciliation ends it.
        log.warning("sandbox.row_left", sandbox_id=record.id, error=str(error))
