"""What the node says of a sandbox's state, written into its row: the node rules on that."""

import structlog

from cloche_server.api.control import ControlPlane
from cloche_server.api.owned import not_found
from cloche_server.ids import SandboxId, TeamId
from cloche_server.node.messages import SandboxState
from cloche_server.store.sandboxes import SandboxRecord
from cloche_wire.errors import ClocheError, Conflict

log = structlog.get_logger()


async def write_word(control: ControlPlane, state: SandboxState) -> None:
    """Write down whether a sandbox runs, unless it is being paused or resumed here, which writes its own."""
    if state.sandbox_id in control.creations:
        return
    team, sandbox, now = TeamId(state.team_id), SandboxId(state.sandbox_id), control.clock.now()
    if state.state == "paused":
        await control.store.pausing.abandon_resume(team, sandbox)
        turned = await control.store.pausing.mark_paused(team, sandbox, now)
    else:
        turned = await control.store.pausing.mark_running(team, sandbox, state.end_at, now) is not None
    if turned:
        log.info("sandbox.turned", sandbox_id=sandbox, state=state.state)


async def learn(control: ControlPlane, record: SandboxRecord) -> SandboxState | None:
    """Ask whether a sandbox runs, is paused or is gone, and write that down.

    Raises:
        Unavailable: The node does not answer; nothing is concluded from that.
        DeadlineExceeded: The same holds.
    """
    found = {state.sandbox_id: state for state in await control.placement.list()}.get(record.id)
    if found is not None:
        await write_word(control, found)
        return found
    now = control.clock.now()
    await control.store.sandboxes.mark_ended(record.team_id, record.id, "lost", now)
    return None


async def missed(control: ControlPlane, record: SandboxRecord) -> ClocheError:
    """Return the error for a sandbox that a verb did not find, after its row was made true.

    A row ends only when nothing of the sandbox is there: what is paused must not be taken for gone.
    """
    state = await learn(control, record)
    return not_found(record.id) if state is None else Conflict(f"Sandbox {record.id} is {state.state}")
