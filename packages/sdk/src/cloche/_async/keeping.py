"""Sandboxes that are put on disk and come back, and copies of them: the requests."""

from __future__ import annotations

from cloche import _requests
from cloche._async.client import Client
from cloche._requests import SandboxRecord
from cloche.errors import ClocheError, Conflict, NotFound, SandboxNotFound, SnapshotNotFound
from cloche.models import SnapshotInfo


async def paused(client: Client, sandbox_id: str, *, memory: bool) -> str:
    """Pause a sandbox and return its id, also where it was paused before."""
    path = f"/sandboxes/{_requests.path_part(sandbox_id)}/pause"
    try:
        await client.api("POST", path, body={"memory": memory}, missing=SandboxNotFound)
    except Conflict as error:
        if "already paused" not in error.message:
            raise
    return sandbox_id


async def frozen(client: Client, sandbox_id: str) -> None:
    """Have a sandbox stand still."""
    path = f"/sandboxes/{_requests.path_part(sandbox_id)}/freeze"
    await client.api("POST", path, missing=SandboxNotFound)


async def snapshot_of(client: Client, sandbox_id: str, name: str | None, *, memory: bool) -> SnapshotInfo:
    """Keep a copy of a sandbox that runs."""
    path = f"/sandboxes/{_requests.path_part(sandbox_id)}/snapshots"
    body = {"memory": memory} | ({} if name is None else {"name": name})
    response = await client.api("POST", path, body=body, missing=SandboxNotFound)
    return _requests.read_snapshot(response.json())


async def snapshot_deleted(client: Client, snapshot_id: str) -> bool:
    """Delete a snapshot; False where there is none."""
    path = f"/templates/{_requests.path_part(snapshot_id)}"
    try:
        await client.api("DELETE", path, missing=SnapshotNotFound)
    except NotFound:
        return False
    return True


async def forks_of(
    client: Client, sandbox_id: str, count: int, timeout: int | None, *, memory: bool
) -> list[SandboxRecord | ClocheError]:
    """Make copies of a sandbox that runs: each is there, or why it is not."""
    path = f"/sandboxes/{_requests.path_part(sandbox_id)}/fork"
    body: dict[str, object] = {"count": count}
    if not memory:
        body["memory"] = False
    if timeout is not None:
        body["timeout"] = timeout
    response = await client.api("POST", path, body=body, missing=SandboxNotFound)
    return _requests.read_forks(response.json(), client.connection)
