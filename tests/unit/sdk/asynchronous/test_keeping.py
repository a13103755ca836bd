"""Sandboxes that are put on disk and come back, and copies of them, as the client asks for them."""

from __future__ import annotations

import httpx
import pytest
from tests.fakes.sandbox_server import RECORD, SandboxServer, body_of

from cloche._async.sandbox import AsyncSandbox
from cloche.errors import Conflict, InvalidArgument, NotEnoughSpace, ResourceExhausted, SandboxNotFound

pytestmark = pytest.mark.anyio

PAUSE = "POST /sandboxes/iabc/pause"


async def created(server: SandboxServer) -> AsyncSandbox:
    server.on("POST /v2/sandboxes", httpx.Response(201, json=RECORD))
    return await AsyncSandbox.create()


def problem(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"code": status, "message": message})


async def test_pause_gives_the_id_with_which_it_comes_back(server: SandboxServer) -> None:
    server.on(PAUSE, httpx.Response(204))
    server.on("POST /v2/sandboxes/iabc/connect", httpx.Response(201, json=RECORD))
    sandbox = await created(server)
    sandbox_id = await sandbox.pause()
    assert body_of(server.requests[-1]) == {"memory": True}
    for resumed in (await AsyncSandbox.resume(sandbox_id), await AsyncSandbox.connect(sandbox_id, 30)):
        assert resumed.sandbox_id == "iabc"


async def test_pause_by_id_may_leave_the_memory_out(server: SandboxServer) -> None:
    server.on(PAUSE, httpx.Response(204))
    assert await AsyncSandbox.pause("iabc", memory=False) == "iabc"
    assert body_of(server.requests[-1]) == {"memory": False}


async def test_pause_of_a_paused_sandbox_is_no_error_and_of_a_busy_one_is(server: SandboxServer) -> None:
    server.on(PAUSE, problem(409, "Error pausing sandbox - sandbox 'iabc' is already paused"))
    assert await AsyncSandbox.pause("iabc") == "iabc"
    server.on(PAUSE, problem(409, "something else is being done with the sandbox: iabc"))
    with pytest.raises(Conflict):
        await AsyncSandbox.pause("iabc")


@pytest.mark.parametrize(
    ("status", "kind"), [(404, SandboxNotFound), (400, InvalidArgument), (507, NotEnoughSpace)]
)
async def test_a_refused_pause_is_a_typed_error(
    server: SandboxServer, status: int, kind: type[Exception]
) -> None:
    server.on(PAUSE, problem(status, "no luck"))
    with pytest.raises(kind, match="no luck"):
        await AsyncSandbox.pause("iabc")


async def test_freeze_is_asked_for_and_shown(server: SandboxServer) -> None:
    server.on("POST /v2/sandboxes", httpx.Response(201, json=RECORD))
    server.on("POST /sandboxes/iabc/freeze", httpx.Response(204))
    sandbox = await AsyncSandbox.create(idle_after=30, on_idle="pause")
    assert body_of(server.requests[-1])["idle"] == {"afterSeconds": 30, "action": "pause"}
    await sandbox.freeze()
    await sandbox.aclose()
    server.on("POST /sandboxes/iabc/freeze", problem(409, "Sandbox iabc is paused and cannot be frozen"))
    with pytest.raises(Conflict, match="cannot be frozen"):
        await sandbox.freeze()


async def test_what_happens_at_the_end_of_its_time_is_sent(server: SandboxServer) -> None:
    server.on("POST /v2/sandboxes", httpx.Response(201, json=RECORD))
    await AsyncSandbox.create(on_timeout="pause", auto_resume=True)
    body = body_of(server.requests[-1])
    assert (body["autoPause"], body["autoResume"]) == (True, {"enabled": True})
    with pytest.raises(InvalidArgument, match="bad on_timeout"):
        await AsyncSandbox.create(on_timeout="sleep")  # type: ignore[arg-type]


async def test_a_snapshot_is_a_template_until_it_is_deleted(server: SandboxServer) -> None:
    answer = httpx.Response(201, json={"snapshotID": "s1:default", "names": ["before"]})
    server.on("POST /sandboxes/iabc/snapshots", answer)
    sandbox = await created(server)
    snapshot = await sandbox.create_snapshot("before")
    assert (snapshot.snapshot_id, snapshot.names) == ("s1:default", ("before",))
    assert body_of(server.requests[-1]) == {"memory": True, "name": "before"}
    await AsyncSandbox.create(snapshot.snapshot_id)
    assert body_of(server.requests[-1])["templateID"] == "s1:default"
    server.on("DELETE /templates/s1:default", httpx.Response(204), problem(404, "gone"))
    assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
    assert not await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)


async def test_a_fork_tells_of_each_copy_what_became_of_it(server: SandboxServer) -> None:
    server.on(
        "POST /sandboxes/iabc/fork",
        httpx.Response(
            201,
            json=[{"sandbox": RECORD | {"sandboxID": "ixyz"}}, {"error": {"code": 429, "message": "full"}}],
        ),
    )
    sandbox = await created(server)
    made, failed = await sandbox.fork(2, timeout=30)
    assert body_of(server.requests[-1]) == {"count": 2, "timeout": 30}
    assert isinstance(made, AsyncSandbox)
    assert made.sandbox_id == "ixyz"
    assert isinstance(failed, ResourceExhausted)
    await made.aclose()


async def test_files_alone_are_asked_for_by_name(server: SandboxServer) -> None:
    sandbox = await created(server)
    server.on("POST /sandboxes/iabc/fork", httpx.Response(201, json=[]))
    assert await sandbox.fork(memory=False) == []
    assert body_of(server.requests[-1]) == {"count": 1, "memory": False}
    await AsyncSandbox.create(on_timeout="pause", keep_memory=False)
    body = body_of(server.requests[-1])
    assert (body["autoPause"], body["autoPauseMemory"]) == (True, False)
