"""Keeping rows true to what lives: the node's word on liveness, the store's on ownership.

Ends, pauses and resumes come as events and are written at once. Since events may be lost, and since either
side may have been killed in the middle of anything, everything is also compared: whenever the link to the
node comes up, and every few seconds.
"""

import contextlib
from contextlib import aclosing

import anyio
import structlog

from cloche_server.api.control import ControlPlane
from cloche_server.api.network_options import egress_of
from cloche_server.api.node_word import write_word
from cloche_server.api.snapshots import finish_snapshots
from cloche_server.api.volumes import finish_volumes
from cloche_server.node.messages import SandboxEnded, SandboxState, SetEgress
from cloche_server.placement.base import LinkUp
from cloche_server.store.liveness import ShownEgress
from cloche_server.store.sandboxes import PAUSED, RUNNING
from cloche_wire.errors import ClocheError, Conflict, SandboxNotFound

COMPARE_EVERY_S = 4.0
"""A listing shows a dead sandbox for less than 5 s even when no event tells of its end."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

log = structlog.get_logger()


async def reconcile(control: ControlPlane) -> None:
    """Make rows and node agree once.

    The order of the three questions matters: a row read as running or paused before the node was asked has to
    be in its answer, and a sandbox in the answer that nobody was making then has to have a row afterwards.

    Raises:
        Unavailable: The node or the database does not answer; nothing is concluded from that.
        DeadlineExceeded: The node takes too long; the same holds.
    """
    before = await control.store.liveness.alive()
    unmade = {sandbox for sandbox, state in before.items() if state == "creating"}
    unmade = {sandbox for sandbox in unmade if sandbox not in control.creations}
    alive = {state.sandbox_id: state for state in await control.placement.list()}
    made = [sandbox for sandbox in alive if sandbox not in control.creations]
    after = await control.store.liveness.alive()
    # Still `creating` now, and not in the making when asked after `before`: whoever was making it is dead.
    # One whose making had just ended has a row that says so.
    left = [sandbox for sandbox in unmade if after.get(sandbox) == "creating"]
    known = {sandbox: state for sandbox, state in before.items() if state in (*RUNNING, *PAUSED)}
    lost = [sandbox for sandbox in known if sandbox not in alive]
    # A row that has changed in between was written by who paused or resumed it, later than the node's answer.
    settled = [
        sandbox for sandbox, state in known.items() if after.get(sandbox) == state and sandbox in alive
    ]
    turned = [sandbox for sandbox in settled if alive[sandbox].state != known[sandbox]]
    orphans = [sandbox for sandbox in made if sandbox not in after]
    # First what costs nothing, so that a kill that takes long keeps no dead sandbox in a listing.
    await control.store.liveness.end(lost, "lost", control.clock.now())
    for sandbox in turned:
        await write_word(control, alive[sandbox])
    gone = {sandbox for sandbox in (*orphans, *left) if await _kill_leftover(control, sandbox)}
    await control.store.liveness.end(gone.intersection(left), "failed", control.clock.now())
    await finish_volumes(control)
    await finish_snapshots(control)
    if lost or left or orphans:
        log.info("api.reconciled", lost=lost, left=left, orphans=orphans)


async def settle_network(control: ControlPlane) -> None:
    """Have nodes enforce what rows show, where an api was killed between the two.

    Nobody has been answered then, so either would be right; only that they agree matters.

    Raises:
        Unavailable: The node or the database does not answer.
        DeadlineExceeded: The node takes too long.
    """
    enforced = {state.sandbox_id: state.egress_digest for state in await control.placement.list()}
    for sandbox_id, shown in (await control.store.liveness.egress()).items():
        if _order(control, sandbox_id, shown).digest == enforced.get(sandbox_id):
            continue
        async with control.network_changes.of(sandbox_id):
            now = (await control.store.liveness.egress(sandbox_id)).get(sandbox_id)
            if now is not None and sandbox_id in enforced:
                with contextlib.suppress(SandboxNotFound, Conflict):  # gone meanwhile, or paused
                    await control.placement.set_egress(_order(control, sandbox_id, now))
                    log.info("sandbox.network_settled", sandbox_id=sandbox_id)


def _order(control: ControlPlane, sandbox_id: str, shown: ShownEgress) -> SetEgress:
    exceptions = control.config.egress.exceptions
    egress = egress_of(shown.network, exceptions, allow_internet=shown.allow_internet)
    return SetEgress(sandbox_id, egress.allow_internet, egress.policy)


async def follow_node(control: ControlPlane) -> None:
    """Write down everything the node tells of, for ever; connect again when the link breaks."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            async with aclosing(control.placement.watch()) as events:
                async for event in events:
                    pause_s = FIRST_PAUSE_S
                    await _take_event(control, event)
        except ClocheError as error:
            log.debug("api.node_link_lost", error=str(error))
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def compare_regularly(control: ControlPlane) -> None:
    """Reconcile every few seconds, for ever."""
    while True:
        await anyio.sleep(COMPARE_EVERY_S)
        try:
            await reconcile(control)
        except ClocheError as error:
            log.debug("api.not_reconciled", error=str(error))


async def _take_event(control: ControlPlane, event: LinkUp | SandboxEnded | SandboxState) -> None:
    match event:
        case LinkUp():
            await reconcile(control)
            await settle_network(control)
        case SandboxState():
            await write_word(control, event)
        case SandboxEnded(sandbox_id, reason):
            control.creations.note_end(sandbox_id)
            if await control.store.liveness.end([sandbox_id], reason, control.clock.now()):
                log.info("sandbox.ended", sandbox_id=sandbox_id, reason=reason)


async def _kill_leftover(control: ControlPlane, sandbox_id: str) -> bool:
    """Whether it is gone; if not, the next comparison tries again."""
    try:
        await control.placement.kill(sandbox_id, "failed")
    except SandboxNotFound:
        return True
    except ClocheError as error:
        log.warning("sandbox.leftover_stays", sandbox_id=sandbox_id, error=str(error))
        return False
    log.info("sandbox.leftover_killed", sandbox_id=sandbox_id)
    return True
