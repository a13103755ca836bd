"""Files kept without memory, over a driver that writes layers: whatever is done or dies, none is lost."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.node.conftest import BUILD_ID, Node, request_for

from cloche_server.ids import new_volume_id
from cloche_server.isolation import overlay
from cloche_server.isolation.base import Capabilities
from cloche_server.node import (
    agent_link,
    assemble,
    create,
    kept_files,
    kill,
    layers,
    machine,
    pause,
    pruning,
    reconcile,
    resume,
    snapshots,
    trees,
    volume_requests,
)
from cloche_server.node.agent_link import AgentInit
from cloche_server.node.build_messages import PruneLayers
from cloche_server.node.messages import (
    CreateVolume,
    PauseSandbox,
    RemoveSnapshot,
    RemoveVolume,
    ResumeSandbox,
    SandboxState,
    TakeSnapshot,
    VolumeMount,
)
from cloche_wire.errors import (
    ClocheError,
    Conflict,
    Internal,
    NotEnoughSpace,
    NotFound,
    SnapshotUnusable,
    TooLarge,
    UnsupportedOption,
)

pytestmark = pytest.mark.anyio
A, B, C = ("i" + letter * 20 for letter in "abc")


@pytest.fixture(autouse=True)
def able(node: Node) -> None:
    node.driver.able = Capabilities(
        name="remembering", shares_host_kernel=True, freezes=True, disk_snapshot=True, writes_layers=True
    )
    (node.state / "runtime" / "tree").mkdir(parents=True, exist_ok=True)
    (node.state / "templates" / BUILD_ID / "rootfs").mkdir()


def write(m: machine.Machine, sandbox_id: str, name: str, text: str) -> None:
    """As the sandbox does."""
    (m.folder(sandbox_id) / overlay.UPPER / name).write_text(text)


def shown(node: Node, name: str) -> str | None:
    """What the newest sandbox shows there, over its template and before it writes."""
    for layer in node.driver.specs[-1].layers:
        if (layer / name).exists():
            return (layer / name).read_text()
    return None


async def started(m: machine.Machine, letter: str = "a", **changes: Any) -> str:
    return (await create.create(m, request_for(letter, **changes))).sandbox_id


async def paused(m: machine.Machine, sandbox_id: str = A) -> None:
    await pause.pause(m, PauseSandbox(sandbox_id, memory=False))


async def resumed(m: machine.Machine, sandbox_id: str = A) -> SandboxState:
    return await resume.resume(m, ResumeSandbox(sandbox_id, 60))


async def copied(m: machine.Machine, snapshot_id: str = "s1", *, for_now: bool = False) -> None:
    await snapshots.take(m, TakeSnapshot(A, snapshot_id, memory=False, for_now=for_now))


async def test_paused_sandbox_is_a_layer_and_a_manifest_and_nothing_else(node: Node) -> None:
    async with node.machine() as m:
        await started(m)
        write(m, A, "file", "text")
        await paused(m)
        remains = node.remains()
        assert remains.keys() == {"records", "images", "layers"}
        assert (remains["images"], len(remains["layers"])) == ({f"{A}-1"}, 1)
        assert m.slots.taken == frozenset()
        await kill.end_or_forget(m, A, "killed")
    assert node.remains() == {}


async def test_resumed_sandbox_is_started_over_its_files(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent is a new one: it is told all, and there are no processes to end."""
    heard: list[AgentInit] = []
    real = agent_link.initialize

    async def noted(address: str, body: AgentInit, **others: Any) -> None:
        assert others["known_token"] == ""
        heard.append(body)
        await real(address, body, **others)

    async def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(agent_link, "initialize", noted)
    monkeypatch.setattr(agent_link, "quiesce", never)
    async with node.machine() as m:
        await started(m, env={"X": "1"})
        write(m, A, "file", "text")
        await paused(m)
        assert (await resumed(m)).state == "running"
        assert (node.driver.specs[-1].image, shown(node, "file")) == (None, "text")
        assert (heard[-1].restored, heard[-1].env_vars["X"]) == (False, "1")
        assert "images" not in node.remains()
        await kill.end_or_forget(m, A, "killed")
    assert node.remains() == {}


async def test_another_runtime_is_no_reason_to_refuse_files(node: Node) -> None:
    async with node.machine() as m:
        await started(m)
        await paused(m)
        (node.state / "runtime" / "tree").rmdir()
        await resumed(m)


async def test_memory_is_refused_and_both_ways_out_are_named(node: Node) -> None:
    async with node.machine() as m:
        await started(m)
        with pytest.raises(UnsupportedOption, match="memory") as told:
            await pause.pause(m, PauseSandbox(A))
        assert told.value.hint is not None
        assert "gvisor" in told.value.hint
        assert "memory false" in told.value.hint
        with pytest.raises(UnsupportedOption):
            await snapshots.take(m, TakeSnapshot(A, "s1"))
        with pytest.raises(UnsupportedOption):
            await started(m, "b", on_timeout="pause")
        await started(m, "c", on_timeout="pause", pause_memory=False)
        assert m.find(A).record.state == "running"


async def test_time_out_pauses_files(node: Node) -> None:
    async with node.machine() as m:
        await started(m, on_timeout="pause", pause_memory=False)
        write(m, A, "file", "text")
        await pause.pause_by_timeout(m, m.find(A))
        await resumed(m)
        assert shown(node, "file") == "text"


async def test_every_pause_adds_a_layer_until_they_are_made_one(node: Node) -> None:
    async with node.machine() as m:
        await started(m)
        seen: list[int] = []
        for number in range(2 * kept_files.MOST_KEPT):
            write(m, A, f"file-{number}", str(number))
            write(m, A, "newest", str(number))
            await paused(m)
            seen.append(len(node.remains()["layers"]))
            await resumed(m)
            assert shown(node, "newest") == str(number)
            assert [shown(node, f"file-{before}") for before in range(number + 1)] == [
                str(before) for before in range(number + 1)
            ]
        assert seen == [*range(1, kept_files.MOST_KEPT + 1), *range(1, kept_files.MOST_KEPT + 1)]


async def test_snapshot_is_of_its_moment_and_its_sandboxes_outlive_it(node: Node) -> None:
    async with node.machine() as m:
        await started(m)
        write(m, A, "file", "before")
        await copied(m)
        write(m, A, "file", "after")
        assert not node.driver.frozen
        for letter in "bc":
            await started(m, letter, snapshot_id="s1")
            assert shown(node, "file") == "before"
        await snapshots.remove(m, RemoveSnapshot("s1"))
        assert len(node.remains()["layers"]) == 1
        await kill.end(m, B, "killed")
        assert len(node.remains()["layers"]) == 1
        await kill.end(m, C, "killed")
        assert "layers" not in node.remains()


async def test_copy_for_now_is_not_read_and_is_sealed_when_what_stands_on_it_is_kept(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node.machine() as m:
        await started(m)
        write(m, A, "file", "text")
        with monkeypatch.context() as patched:
            patched.setattr(trees, "sum_of", None)
            patched.setattr(layers, "sync_all_below", None)
            await copied(m, for_now=True)
            await started(m, "b", snapshot_id="s1")
        await snapshots.remove(m, RemoveSnapshot("s1"))
        await paused(m, B)
        await resumed(m, B)
        assert shown(node, "file") == "text"


async def test_damaged_files_are_refused_and_mended_ones_resume(node: Node) -> None:
    async with node.machine() as m:
        await started(m)
        write(m, A, "file", "text")
        await paused(m)
        (file,) = node.state.glob("layers/*/fs/file")
        file.write_text("texT")
        with pytest.raises(SnapshotUnusable, match=f"{A}-1"):
            await resumed(m)
        assert len(node.driver.specs) == 1
        assert m.slots.taken == frozenset()
        file.write_text("text")
        await resumed(m)


async def test_sandbox_that_cannot_be_resumed_stays_paused(node: Node) -> None:
    async with node.machine() as m:
        await started(m)
        write(m, A, "file", "text")
        await paused(m)
        before = node.remains()
        node.driver.failures.append(Internal("no"))
        with pytest.raises(Internal):
            await resumed(m)
        assert node.remains() == before
        await resumed(m)
        assert shown(node, "file") == "text"


async def test_sandboxes_with_volumes_have_them_again(node: Node) -> None:
    """Nothing of a volume is kept, and no kernel knows names in it; it stays as long as one is paused."""
    node.driver.able = msgspec.structs.replace(node.driver.able, volumes=True)
    async with node.machine() as m:
        made = CreateVolume(new_volume_id(), "team", "token")
        await m.volumes.create(made)
        mounts = (VolumeMount(made.volume_id, "/data"),)
        await started(m, volume_mounts=mounts)
        await copied(m)
        await paused(m)
        with pytest.raises(Conflict, match="volume is mounted"):
            volume_requests.remove(m, RemoveVolume(made.volume_id))
        await resumed(m)
        await started(m, "b", snapshot_id="s1", volume_mounts=mounts)
        assert [[mount.path for mount in spec.mounts] for spec in node.driver.specs] == [["/data"]] * 3


async def test_resumed_and_copied_sandboxes_are_in_families(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their interpreters are forks then, as those of others."""
    family: Any = object()
    async with node.machine() as m:
        await started(m)
        await copied(m)
        await paused(m)
        monkeypatch.setattr(m.families, "take", lambda *_: (m.slots.take(), family))
        monkeypatch.setattr(assemble, "_make_network", _no_network)
        await resumed(m)
        await started(m, "b", snapshot_id="s1")
        assert [spec.family for spec in node.driver.specs] == [None, family, family]


async def _no_network(*_: object) -> int:
    return -1


@pytest.mark.parametrize("step", ["copy", "sum", "image", "record"])
async def test_files_that_cannot_be_kept_leave_the_sandbox_running_and_nothing_else(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next pause finds nothing of it in its way."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with node.machine() as m:
        await started(m)
        with monkeypatch.context() as patched:
            if step == "record":
                patched.setattr(m.journal, "write", _full_from(m.journal.write, 3))
            elif step == "image":
                patched.setattr(m.images, "commit", full)
            else:
                patched.setattr(trees, {"copy": "copy", "sum": "sum_of"}[step], full)
            with pytest.raises(NotEnoughSpace):
                await paused(m)
            if step != "record":
                with pytest.raises(NotEnoughSpace):
                    await copied(m)
        assert m.find(A).record.state == "running"
        assert node.driver.frozen == set()
        assert not {"images", "layers"} & node.remains().keys()
        await paused(m)
        await resumed(m)


def _full_from(write_record: Any, call: int) -> Any:
    calls = 0

    def counted(record: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_record(record)

    return counted


async def test_more_files_than_are_kept_are_refused_by_their_number(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "MOST_ENTRIES", 2)
    async with node.machine() as m:
        await started(m)
        for number in range(3):
            write(m, A, str(number), "")
        with pytest.raises(TooLarge, match="2 files"):
            await paused(m)
        with pytest.raises(TooLarge, match="2 files"):
            await copied(m)
        await pause.pause_by_timeout(m, m.find(A))
        assert m.find(A).record.deadline_boot_s == node.clock.boot_s() + pause.RETRY_S
        assert not {"images", "layers"} & node.remains().keys()


async def test_snapshot_that_goes_while_a_sandbox_is_made_of_it_is_missed_by_name(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node.machine() as m:
        await started(m)
        await copied(m)
        real = create.first_live

        def removed_meanwhile(*arguments: Any) -> Any:
            kept_files.forget(m, snapshots.name_of("s1"))
            return real(*arguments)

        monkeypatch.setattr(create, "first_live", removed_meanwhile)
        with pytest.raises(NotFound):
            await started(m, "b", snapshot_id="s1")
        assert len(node.driver.specs) == 1


async def test_layers_stay_where_an_image_cannot_be_read(node: Node) -> None:
    """Nobody knows which it names, and it may be mended; nothing is pruned then either."""
    async with node.machine() as m:
        await started(m)
        await paused(m)
        (node.state / "images" / "snapshot-odd").mkdir()
        (node.state / "images" / "snapshot-odd" / "manifest").write_bytes(b"odd")
        before = node.remains()["layers"]
        assert kept_files.sweep(m) == 0
        assert node.remains()["layers"] == before
        assert pruning.prune(m, PruneLayers([], 0)).layers == []


async def test_layers_of_a_build_stay_while_a_snapshot_stands_on_it(node: Node) -> None:
    at_once = PruneLayers([], -(10**10))  # this clock is behind
    async with node.machine() as m:
        step = m.layers.begin()
        m.layers.begun(step).mkdir()
        m.layers.commit(step, "team", 0, 0)
        await started(m)
        await copied(m)
        await kill.end(m, A, "killed")
        manifest = node.state / "templates" / BUILD_ID / "manifest.json"
        manifest.rename(manifest.with_name("hidden"))
        assert pruning.prune(m, at_once).layers == []
        await snapshots.remove(m, RemoveSnapshot("s1"))
        assert [layer.layer_id for layer in pruning.prune(m, at_once).layers] == [step]


# --- the node dies


async def dies(*_: Any, **__: Any) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("step", ["take", "complete", "commit", "record", "destroy"])
async def test_node_that_dies_in_a_pause_finds_the_sandbox_with_its_files(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_open_network", lambda _: node.network.new_namespace())
    async with node.machine(dies=True) as m:
        await started(m)
        write(m, A, "file", "text")
        with monkeypatch.context() as patched:
            await _die_in_a_pause(m, node, step, patched)
    async with node.machine() as m:
        await reconcile.reconcile(m)
        if step == "destroy":
            await resumed(m)
            assert shown(node, "file") == "text"
        else:
            assert (m.folder(A) / overlay.UPPER / "file").read_text() == "text"
        assert m.find(A).record.state == "running"
        assert node.driver.frozen == set()
        assert "images" not in node.remains()
        assert len(node.remains().get("layers", ())) == (step == "destroy")


async def _die_in_a_pause(m: machine.Machine, node: Node, step: str, patched: pytest.MonkeyPatch) -> None:
    if step == "record":
        patched.setattr(m.journal, "write", _dying_at(m.journal.write, 3))
    else:
        owner: Any = {"commit": m.images, "destroy": node.driver}.get(step, kept_files)
        patched.setattr(owner, step, dies)
    with pytest.raises(asyncio.CancelledError):
        await paused(m)


def _dying_at(write_record: Any, call: int) -> Any:
    calls = 0

    def counted(record: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise asyncio.CancelledError
        write_record(record)

    return counted


async def test_machine_that_crashes_after_files_are_complete_finds_the_sandbox_paused(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node.machine(dies=True) as m:
        await started(m)
        write(m, A, "file", "text")
        with monkeypatch.context() as patched:
            await _die_in_a_pause(m, node, "record", patched)
    node.driver.exit(A)
    async with node.machine() as m:
        await reconcile.reconcile(m)
        await resumed(m)
        assert shown(node, "file") == "text"


async def test_node_that_dies_and_comes_back_keeps_what_sandboxes_and_snapshots_stand_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_open_network", lambda _: node.network.new_namespace())
    async with node.machine(dies=True) as m:
        await started(m)
        for snapshot_id in ("s1", "s2"):
            await copied(m, snapshot_id, for_now=snapshot_id == "s2")
        await started(m, "b", snapshot_id="s2")
        left = m.layers.begin(layers.KEPT_PREFIX)
        m.layers.begun(left).mkdir()
    async with node.machine() as m:
        await reconcile.reconcile(m)
        assert node.remains()["images"] == {"snapshot-s1"}
        assert len(node.remains()["layers"]) == 2
        await started(m, "c", snapshot_id="s1")
        await paused(m, B)
        await resumed(m, B)
        with pytest.raises(ClocheError):
            await started(m, "d", snapshot_id="s2")


def test_folder_of_a_layer_is_for_root_alone(tmp_path: Path) -> None:
    """It may hold set-user-id programs of a sandbox."""
    kept = layers.Layers(tmp_path / "layers", None, lambda _: None)  # type: ignore[arg-type]
    assert (tmp_path / "layers").stat().st_mode & 0o077 == 0
    assert kept.kept() == set()
