"""From the id in a path to the caller's own sandbox; a foreign one is as good as an unknown one."""

from cloche_server.api.control import ControlPlane
from cloche_server.api.routing import Call
from cloche_server.ids import SandboxId, is_sandbox_id
from cloche_server.store.sandboxes import SandboxRecord
from cloche_wire.errors import InvalidArgument, SandboxNotFound


async def running_sandbox(control: ControlPlane, call: Call) -> SandboxRecord:
    """Return the running sandbox that the path names.

    Raises:
        InvalidArgument: No such id can be.
        SandboxNotFound: The caller's team has none of that id that runs; of one that is paused it is said so.
    """
    record = await live_sandbox(control, call)
    if record.is_paused:
        raise SandboxNotFound(f'Sandbox "{record.id}" is paused', hint="connect to it first")
    return record


async def live_sandbox(control: ControlPlane, call: Call) -> SandboxRecord:
    """Return the sandbox that the path names, running or paused.

    Raises:
        InvalidArgument: No such id can be.
        SandboxNotFound: The caller's team has none of that id that is there.
    """
    record = await _find(control, call)
    if record.state != "running" and not record.is_paused:
        raise not_found(record.id)
    return record


async def known_sandbox(control: ControlPlane, call: Call) -> SandboxRecord:
    """Return the sandbox that the path names, also when it has ended within the last days.

    Raises:
        InvalidArgument: No such id can be.
        SandboxNotFound: The caller's team has had none of that id.
    """
    return await _find(control, call)


def sandbox_id_of(call: Call) -> SandboxId:
    """Return the id in the path. Ids of the old form end in a client id behind a hyphen.

    Raises:
        InvalidArgument: No such id can be.
    """
    sandbox_id = call.params["id"].partition("-")[0]
    if not is_sandbox_id(sandbox_id):
        raise InvalidArgument("Invalid sandbox ID")
    return SandboxId(sandbox_id)


def not_found(sandbox_id: str) -> SandboxNotFound:
    """Return the error for a sandbox that is not there, or not the caller's."""
    return SandboxNotFound(f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it")


async def _find(control: ControlPlane, call: Call) -> SandboxRecord:
    sandbox_id = sandbox_id_of(call)
    record = await control.store.sandboxes.get(call.caller.team_id, sandbox_id)
    if record is None:
        raise not_found(sandbox_id)
    return record
