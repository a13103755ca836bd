"""Pausing, resuming and copying over a driver that only remembers: a sandbox runs or is paused, always."""

import asyncio
import errno
from typing import Any
from uuid import UUID

import msgspec
import pytest
from tests.unit.node.conftest import Node, let_save, request_for

from cloche_server.isolation.base import Capabilities
from cloche_server.node import (
    agent_link,
    create,
    dial,
    egress,
    kill,
    machine,
    pause,
    reaper,
    reconcile,
    resume,
    snapshots,
)
from cloche_server.node.agent_link import AgentInit
from cloche_server.node.messages import (
    Dial,
    PauseSandbox,
    RemoveSnapshot,
    ResumeSandbox,
    SandboxState,
    SetEgress,
    SetTimeout,
    TakeSnapshot,
    Wake,
)
from cloche_wire.errors import (
    AlreadyExists,
    Conflict,
    Internal,
    NotEnoughSpace,
    ResourceExhausted,
    SandboxNotFound,
    SnapshotNotFound,
    SnapshotUnusable,
    Unavailable,
    UnsupportedOption,
)

pytestmark = pytest.mark.anyio
_RECORDS_OF_A_PAUSE = 3
"""That it is being paused, that it stands still, that it is paused."""
A, B = "i" + "a" * 20, "i" + "b" * 20


@pytest.fixture(autouse=True)
def able(node: Node) -> None:
    let_save(node)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, AgentInit]]:
    """What agents are told, with the token that they go by."""
    heard: list[tuple[str, AgentInit]] = []
    real = agent_link.initialize

    async def noted(address: str, body: AgentInit, **others: Any) -> None:
        heard.append((others.get("known_token", ""), body))
        await real(address, body, **others)

    monkeypatch.setattr(agent_link, "initialize", noted)
    return heard


async def paused(m: machine.Machine, letter: str = "a", **changes: Any) -> None:
    request = request_for(letter, **changes)
    await create.create(m, request)
    await pause.pause(m, PauseSandbox(request.sandbox_id))


async def resumed(m: machine.Machine, sandbox_id: str = A) -> SandboxState:
    return await resume.resume(m, ResumeSandbox(sandbox_id, 60))


# --- pause and resume


async def test_paused_sandbox_is_on_disk_and_nowhere_else(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        assert node.remains() == {"records": [A], "images": {f"{A}-1"}}
        assert m.slots.taken == frozenset()
        assert [record.public().state for record in m.paused.values()] == ["paused"]


async def test_resumed_sandbox_goes_on_from_its_image_which_is_gone_then(
    node: Node, told: list[tuple[str, AgentInit]]
) -> None:
    async with node.machine() as m:
        await paused(m, env={"X": "1"})
        state = await resumed(m)
        assert (state.state, m.find(A).record.image) == ("running", None)
        assert node.driver.specs[-1].image == node.state / "images" / f"{A}-1"
        assert "images" not in node.remains()
        known, body = told[-1]
        assert (known, body.access_token, body.restored, body.env_vars["X"]) == ("token", "token", True, "1")
        assert set(body.etc_files) == {"hosts", "hostname", "resolv.conf"}


async def test_boot_outlasts_a_pause_with_memory_and_not_one_of_files_alone(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        await resumed(m)
        await pause.pause(m, PauseSandbox(A, memory=False))
        await resumed(m)
        first, second, third = (spec.boot_id for spec in node.driver.specs)
        assert str(UUID(first)) == first
        assert second == first != third
        await create.create(m, request_for("b"))
        assert node.driver.specs[-1].boot_id not in {first, third}


async def test_image_of_an_earlier_version_has_no_place_for_the_id_of_a_boot(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        live = m.find(A)
        live.record = msgspec.structs.replace(live.record, shown_boot_id="")
        for _ in range(2):
            await pause.pause(m, PauseSandbox(A))
            await resumed(m)
        assert [spec.boot_id for spec in node.driver.specs[1:]] == ["", ""]


async def test_each_pause_has_an_image_of_its_own(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        for number in (1, 2, 3):
            await pause.pause(m, PauseSandbox(A))
            assert node.remains()["images"] == {f"{A}-{number}"}
            await resumed(m)


async def test_one_that_is_being_resumed_has_one_route(node: Node) -> None:
    async with node.machine() as m:
        await paused(m, auto_resume=True)
        node.driver.starting.clear()
        node.driver.go_on.clear()
        resuming = m.tasks.create_task(resumed(m))
        await node.driver.starting.wait()
        assert [(route.sandbox_id, route.is_paused) for route in m.routes_now()] == [(A, True)]
        node.driver.go_on.set()
        await resuming
        assert [(route.sandbox_id, route.is_paused) for route in m.routes_now()] == [(A, False)]


async def test_time_that_a_sandbox_has_counts_from_its_resumption(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        node.clock.elapsed_s += 1000
        state = await resume.resume(m, ResumeSandbox(A, 25))
        assert (state.end_at - node.clock.now()).total_seconds() == 25
        assert m.find(A).record.deadline_boot_s == node.clock.elapsed_s + 25


async def test_sandbox_that_is_paused_or_gone_cannot_be_paused(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        with pytest.raises(Conflict, match="paused"):
            await pause.pause(m, PauseSandbox(A))
        with pytest.raises(SandboxNotFound):
            await pause.pause(m, PauseSandbox(B))


async def test_sandbox_that_runs_or_is_gone_cannot_be_resumed(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        with pytest.raises(Conflict, match="runs"):
            await resumed(m)
        with pytest.raises(SandboxNotFound):
            await resumed(m, B)


async def test_second_pause_at_once_is_refused_and_the_first_goes_on(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        tasks = [m.tasks.create_task(_refused(m)) for _ in range(3)]
        await asyncio.wait(tasks)
        assert sorted(task.result() for task in tasks) == [False, True, True]
        assert list(m.paused) == [A]


async def _refused(m: machine.Machine) -> bool:
    try:
        await pause.pause(m, PauseSandbox(A))
    except Conflict:
        return True
    return False


async def test_time_and_network_of_a_paused_sandbox_cannot_be_changed(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        with pytest.raises(Conflict, match="paused"):
            reaper.set_timeout(m, SetTimeout(A, 60))
        with pytest.raises(Conflict, match="paused"):
            await egress.set_egress(m, SetEgress(A, allow_internet=False))
        with pytest.raises(SandboxNotFound):
            await dial.dial(m, Dial(A, 80))


async def test_id_of_a_paused_sandbox_is_taken(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        with pytest.raises(AlreadyExists):
            await create.create(m, request_for("a"))


async def test_driver_without_images_refuses_and_names_one_with(node: Node) -> None:
    node.driver.able = Capabilities(name="remembering", shares_host_kernel=True)
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        with pytest.raises(UnsupportedOption, match="'remembering' cannot keep the memory") as refused:
            await pause.pause(m, PauseSandbox(A))
        assert "gvisor" in (refused.value.hint or "")
        with pytest.raises(UnsupportedOption):
            await create.create(m, request_for("b", on_timeout="pause"))
        assert list(m.live) == [A]


# --- what fails


@pytest.mark.parametrize(
    ("failure", "told_as"),
    [
        (NotEnoughSpace("no space left"), NotEnoughSpace),
        (Internal("checkpoint failed"), Internal),
        (OSError(errno.ENOSPC, "No space left on device"), NotEnoughSpace),
    ],
)
async def test_sandbox_that_cannot_be_saved_runs_on(
    node: Node, failure: Exception, told_as: type[Exception]
) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        node.driver.save_failures.append(failure)
        with pytest.raises(told_as):
            await pause.pause(m, PauseSandbox(A))
        assert m.find(A).record.state == "running"
        assert node.driver.frozen == set()
        assert "images" not in node.remains()
        await pause.pause(m, PauseSandbox(A))


async def test_sandbox_that_died_while_it_was_saved_is_told_as_ended(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        node.driver.save_failures.append(Internal("it is gone"))
        node.driver.is_alive = lambda init: False  # type: ignore[method-assign]
        with pytest.raises(Internal):
            await pause.pause(m, PauseSandbox(A))
        assert node.remains() == {}


@pytest.mark.parametrize("step", ["network", "start", "agent"])
async def test_sandbox_that_cannot_be_resumed_stays_paused(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node.machine() as m:
        await paused(m)
        before = node.remains()
        with monkeypatch.context() as patched:
            if step == "network":
                patched.setattr(node.network, "create", _fails)
            elif step == "start":
                node.driver.failures.append(Internal("no"))
            else:
                node.driver.status = b"500 Oh"
            with pytest.raises(Internal):
                await resumed(m)
            node.driver.status = b"204 No Content"
        assert node.remains() == before
        assert m.slots.taken == frozenset()
        assert (await resumed(m)).state == "running"


def _fails(*_: Any, **__: Any) -> None:
    raise Internal("no")


async def test_damaged_image_is_refused_before_anything_is_started(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        image = node.state / "images" / f"{A}-1" / "pages.img"
        whole = image.read_bytes()
        image.write_bytes(whole[:-1])
        starts = len(node.driver.specs)
        with pytest.raises(SnapshotUnusable, match=f"{A}-1"):
            await resumed(m)
        assert len(node.driver.specs) == starts
        image.write_bytes(whole)
        await resumed(m)


@pytest.mark.parametrize("tree", ["", "gone", "../other", "/"])
async def test_an_image_that_names_no_runtime_tree_of_this_node_is_refused(node: Node, tree: str) -> None:
    (node.state / "other").mkdir()
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        live = m.find(A)
        live.record = msgspec.structs.replace(live.record, runtime_tree=tree)
        await pause.pause(m, PauseSandbox(A))
        with pytest.raises(SnapshotUnusable, match="runtime"):
            await resumed(m)
        assert list(m.paused) == [A]


async def test_no_slot_left_is_told_and_the_sandbox_stays_paused(node: Node) -> None:
    node.limit = 1
    async with node.machine() as m:
        await paused(m)
        await create.create(m, request_for("b"))
        with pytest.raises(ResourceExhausted):
            await resumed(m)
        assert list(m.paused) == [A]


async def test_draining_node_resumes_nothing_and_keeps_what_is_paused(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        m.draining = True
        await kill.end_all(m, "killed")
        with pytest.raises(Unavailable):
            await resumed(m)
        assert list(m.paused) == [A]


# --- ends


async def test_killed_while_paused_nothing_is_left_and_the_api_is_told(node: Node) -> None:
    async with node.machine() as m:
        ends = m.ends.listen()
        await paused(m)
        await kill.end_or_forget(m, A, "killed")
        assert node.remains() == {}
        assert [event.name async for event in _first(ends, 2)] == ["paused", "ended"]
        with pytest.raises(SandboxNotFound):
            await kill.end_or_forget(m, A, "killed")


async def _first(events: Any, count: int) -> Any:
    async for event in events:
        yield event
        count -= 1
        if not count:
            return


async def test_kill_waits_for_a_pause_that_is_under_way(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pause.pause(m, PauseSandbox(A)))
            await asyncio.sleep(0)
            tasks.create_task(kill.end_or_forget(m, A, "killed"))
        assert node.remains() == {}


async def test_time_out_pauses_where_the_request_says_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "LONGEST_SLEEP_S", 0.01)
    async with node.machine() as m:
        events = m.ends.listen()
        await create.create(m, request_for("a", on_timeout="pause", timeout_s=5))
        node.clock.elapsed_s += 6
        task = m.tasks.create_task(reaper.run(m))
        assert [event.name async for event in _first(events, 1)] == ["paused"]
        task.cancel()
        assert list(m.paused) == [A]


async def test_time_out_that_cannot_pause_keeps_the_sandbox_for_a_while(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", on_timeout="pause", timeout_s=5))
        node.driver.save_failures.append(NotEnoughSpace("full"))
        await pause.pause_by_timeout(m, m.find(A))
        assert m.find(A).record.deadline_boot_s == node.clock.elapsed_s + pause.RETRY_S


# --- traffic


async def test_traffic_wakes_only_what_may_be_woken(node: Node) -> None:
    async with node.machine() as m:
        await paused(m, "a", auto_resume=True)
        await paused(m, "b")
        assert [(route.sandbox_id, route.is_paused) for route in m.routes_now()] == [(A, True)]
        tasks = [m.tasks.create_task(resume.wake(m, Wake(A))) for _ in range(3)]
        await asyncio.wait(tasks)
        routes = [task.result() for task in tasks]
        assert {(route.sandbox_id, route.is_paused) for route in routes} == {(A, False)}
        assert (m.find(A).record.end_at - node.clock.now()).total_seconds() == resume.LEAST_WOKEN_S
        with pytest.raises(SandboxNotFound):
            await resume.wake(m, Wake(B))


# --- copies


@pytest.mark.parametrize("for_now", [False, True])
async def test_sandboxes_of_a_snapshot_have_tokens_of_their_own_and_the_source_runs_on(
    node: Node, told: list[tuple[str, AgentInit]], for_now: bool
) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a", env={"FROM": "the source"}))
        taken = await snapshots.take(m, TakeSnapshot(A, "s1", for_now=for_now))
        assert taken.bytes_on_disk == len(f"memory of {A}")
        assert node.driver.frozen == set()
        for letter in "bc":
            await create.create(m, request_for(letter, snapshot_id="s1", access_token=f"token of {letter}"))
            known, body = told[-1]
            assert body.env_vars["FROM"] == "the source"
            assert (known, body.access_token, body.restored) == ("token", f"token of {letter}", True)
        assert {live.record.state for live in m.live.values()} == {"running"}
        await snapshots.remove(m, RemoveSnapshot("s1"))
        with pytest.raises(SnapshotNotFound):
            await create.create(m, request_for("d", snapshot_id="s1"))
        assert "images" not in node.remains()


async def test_files_of_a_snapshot_without_memory_come_without_processes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    async def quiesce(address: str, access_token: str, **_: float) -> None:
        ended.append(access_token)

    monkeypatch.setattr(agent_link, "quiesce", quiesce)
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        await snapshots.take(m, TakeSnapshot(A, "s1", memory=False))
        assert ended == []
        await create.create(m, request_for("b", snapshot_id="s1", access_token="other"))
        assert ended == ["token"]
        await pause.pause(m, PauseSandbox(A))
        await resume.resume(m, ResumeSandbox(A, 60, memory=False))
        assert ended == ["token", "token"]


async def test_snapshot_that_fails_leaves_no_image_and_the_source_as_it_was(node: Node) -> None:
    async with node.machine() as m:
        await create.create(m, request_for("a"))
        node.driver.save_failures.append(NotEnoughSpace("full"))
        with pytest.raises(NotEnoughSpace):
            await snapshots.take(m, TakeSnapshot(A, "s1"))
        assert "images" not in node.remains()
        assert (node.driver.frozen, m.find(A).record.is_frozen) == (set(), False)
        await snapshots.take(m, TakeSnapshot(A, "s1"))
        with pytest.raises(Conflict, match="exists"):
            await snapshots.take(m, TakeSnapshot(A, "s1"))


# --- the node dies


@pytest.fixture
def adopts(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_open_network", lambda _: node.network.new_namespace())


def dies(*_: Any, **__: Any) -> Any:
    raise asyncio.CancelledError


async def dies_later(*_: Any, **__: Any) -> None:
    dies()


@pytest.mark.usefixtures("adopts")
@pytest.mark.parametrize("step", ["freeze", "save", "commit", "record", "destroy"])
async def test_node_that_dies_in_a_pause_finds_the_sandbox_running_or_paused(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        async with node.machine(dies=True) as m:
            await create.create(m, request_for("a"))
            if step == "freeze":
                patched.setattr(node.driver, "freeze", dies_later)
            elif step == "save":
                node.driver.save_failures.append(asyncio.CancelledError())
            elif step == "commit":
                patched.setattr(m.images, "commit", dies_later)
            elif step == "record":
                patched.setattr(m.journal, "write", _dies_at_the_last(m.journal.write))
            else:
                patched.setattr(node.driver, "destroy", dies_later)
            with pytest.raises(asyncio.CancelledError):
                await pause.pause(m, PauseSandbox(A))
    async with node.machine() as m:
        await reconcile.reconcile(m)
        if step == "destroy":
            assert node.remains() == {"records": [A], "images": {f"{A}-1"}}
            await resumed(m)
        assert m.find(A).record.state == "running"
        assert node.driver.frozen == set()
        assert "images" not in node.remains()


def _dies_at_the_last(write: Any) -> Any:
    calls = 0

    def counted(record: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == _RECORDS_OF_A_PAUSE:
            dies()
        write(record)

    return counted


async def test_machine_that_crashes_after_an_image_is_complete_finds_the_sandbox_paused(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        async with node.machine(dies=True) as m:
            await create.create(m, request_for("a"))
            patched.setattr(m.journal, "write", _dies_at_the_last(m.journal.write))
            with pytest.raises(asyncio.CancelledError):
                await pause.pause(m, PauseSandbox(A))
    node.driver.exit(A)
    async with node.machine() as m:
        await reconcile.reconcile(m)
        assert node.remains() == {"records": [A], "images": {f"{A}-1"}}
        await resumed(m)


@pytest.mark.usefixtures("adopts")
@pytest.mark.parametrize("step", ["network", "start", "agent", "record"])
async def test_node_that_dies_in_a_resumption_finds_the_sandbox_paused_or_running(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        async with node.machine(dies=True) as m:
            await paused(m)
            if step == "network":
                patched.setattr(node.network, "create", dies)
            elif step == "start":
                patched.setattr(node.driver, "start", dies_later)
            elif step == "agent":
                patched.setattr(agent_link, "initialize", dies_later)
            else:
                patched.setattr(m.images, "remove", dies)
            with pytest.raises(asyncio.CancelledError):
                await resumed(m)
    async with node.machine() as m:
        await reconcile.reconcile(m)
        if step == "record":
            assert "images" not in node.remains()
        else:
            assert node.remains() == {"records": [A], "images": {f"{A}-1"}}
            assert m.slots.taken == frozenset()
            await resumed(m)
        assert m.find(A).record.state == "running"


@pytest.mark.usefixtures("adopts")
async def test_sandbox_that_stood_still_for_a_copy_when_the_node_died_goes_on(node: Node) -> None:
    async with node.machine(dies=True) as m:
        await create.create(m, request_for("a"))
        node.driver.save_failures.append(asyncio.CancelledError())
        node.driver.thaw = dies_later  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await snapshots.take(m, TakeSnapshot(A, "s1"))
    del node.driver.thaw
    assert node.driver.frozen == {A}
    async with node.machine() as m:
        await reconcile.reconcile(m)
        assert node.driver.frozen == set()
        assert m.find(A).record.is_frozen is False


async def test_image_that_nobody_knows_is_removed_and_snapshots_stay(node: Node) -> None:
    async with node.machine() as m:
        await paused(m)
        await create.create(m, request_for("b"))
        await snapshots.take(m, TakeSnapshot(B, "s1"))
        m.images.begin(f"{B}-7").rename(node.state / "images" / f"{B}-7")
        await reconcile.reconcile(m)
        assert node.remains()["images"] == {f"{A}-1", "snapshot-s1"}
