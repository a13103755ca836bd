"""The node's part in volumes, without a kernel: storage that only opens a folder."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.node.conftest import Node, let_save, request_for

from cloche_server.ids import new_volume_id
from cloche_server.isolation.base import Capabilities
from cloche_server.node import create, kill, pause, reconcile, resume, snapshots, volume_requests, volumes
from cloche_server.node.machine import Machine
from cloche_server.node.messages import (
    CreateVolume,
    OpenVolume,
    PauseSandbox,
    RemoveVolume,
    ResumeSandbox,
    TakeSnapshot,
    VolumeMount,
)
from cloche_wire.errors import (
    AlreadyExists,
    ClocheError,
    Conflict,
    Internal,
    InUse,
    InvalidArgument,
    NotEnoughSpace,
    SnapshotUnusable,
    Unauthenticated,
    Unavailable,
    UnsupportedOption,
    VolumeNotFound,
)

pytestmark = pytest.mark.anyio

A = request_for("a").sandbox_id
TOKEN = "vol_token"


class OpenedFolders:
    """A volume is a folder, its mount an open descriptor of it."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.opened: list[int] = []

    def make(self, folder: Path) -> None:
        (folder / "image").touch()
        if self.failure is not None:
            raise self.failure

    def mount(self, folder: Path) -> int:
        self.opened.append(os.open(folder, os.O_RDONLY))
        return self.opened[-1]

    def left_open(self) -> list[int]:
        return [descriptor for descriptor in self.opened if is_open(descriptor)]


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, node: Node) -> Iterator[OpenedFolders]:
    made = OpenedFolders()
    monkeypatch.setattr(volumes, "storage_of", lambda *_: made)
    node.driver.capabilities = lambda: Capabilities("remembering", shares_host_kernel=True, volumes=True)  # type: ignore[method-assign]
    yield made
    assert made.left_open() == []


def order(team: str = "team") -> CreateVolume:
    return CreateVolume(new_volume_id(), team, TOKEN)


@pytest.mark.usefixtures("storage")
async def test_a_volume_is_there_once_it_is_made_and_gone_once_it_is_removed(node: Node) -> None:
    async with node.machine() as m:
        made = order()
        await m.volumes.create(made)
        assert m.volumes.find(made.volume_id).team_id == "team"
        assert TOKEN not in (node.state / "volumes" / made.volume_id / "volume.json").read_text()
        with pytest.raises(AlreadyExists):
            await m.volumes.create(made)
        for _ in range(2):
            volume_requests.remove(m, RemoveVolume(made.volume_id))
        with pytest.raises(VolumeNotFound):
            m.volumes.find(made.volume_id)
        assert list((node.state / "volumes").iterdir()) == []


async def test_a_volume_that_cannot_be_made_leaves_nothing(node: Node, storage: OpenedFolders) -> None:
    async with node.machine() as m:
        for failure, told in (
            (OSError(errno.ENOSPC, "full"), NotEnoughSpace),
            (OSError(errno.EIO, "broken"), Unavailable),
            (NotEnoughSpace("full"), NotEnoughSpace),
            (Unavailable("no loop devices"), Unavailable),
        ):
            storage.failure = failure
            with pytest.raises(told):
                await m.volumes.create(order())
            assert list((node.state / "volumes").iterdir()) == []


@pytest.mark.usefixtures("storage")
async def test_what_a_killed_node_was_making_goes_at_its_next_start(node: Node) -> None:
    async with node.machine() as m:
        made = order()
        await m.volumes.create(made)
        half = node.state / "volumes" / (new_volume_id() + ".new")
        half.mkdir()
        await reconcile.reconcile(m)
        assert [path.name for path in (node.state / "volumes").iterdir()] == [made.volume_id]


@pytest.mark.parametrize("volume_id", ["", "..", "v" * 21 + "/", "../" + "v" * 18, "V" + "0" * 20])
async def test_no_id_becomes_a_path(node: Node, volume_id: str) -> None:
    async with node.machine() as m:
        with pytest.raises(InvalidArgument):
            await m.volumes.create(CreateVolume(volume_id, "team", TOKEN))
        with pytest.raises(InvalidArgument):
            volume_requests.remove(m, RemoveVolume(volume_id))
        with pytest.raises(VolumeNotFound):
            m.volumes.find(volume_id)
        with pytest.raises(Unauthenticated):
            await m.volumes.open(OpenVolume(volume_id, TOKEN))


async def test_only_the_token_opens_the_content(node: Node, storage: OpenedFolders) -> None:
    async with node.machine() as m:
        made = order()
        await m.volumes.create(made)
        seen: list[ClocheError] = []
        for volume_id, token in (
            (made.volume_id, "vol_other"),
            (made.volume_id, ""),
            (new_volume_id(), TOKEN),
        ):
            with pytest.raises(Unauthenticated) as refused:
                await m.volumes.open(OpenVolume(volume_id, token))
            seen.append(refused.value)
        assert len({str(error) for error in seen}) == 1
        assert storage.opened == []
        with pytest.raises(Unavailable):  # this node has no process for it
            await m.volumes.open(OpenVolume(made.volume_id, TOKEN))


async def test_a_sandbox_gets_its_volumes_and_they_stay_as_long_as_it_lives(
    node: Node, storage: OpenedFolders
) -> None:
    async with node.machine() as m:
        made = order()
        await m.volumes.create(made)
        mounts = (VolumeMount(made.volume_id, "/data"),)
        await create.create(m, request_for("a", volume_mounts=mounts))
        (shared,) = node.driver.specs[0].mounts
        assert (shared.path, shared.mount) == ("/data", storage.opened[0])
        assert storage.left_open() == []
        with pytest.raises(Conflict) as refused:
            volume_requests.remove(m, RemoveVolume(made.volume_id))
        assert A in refused.value.message
        await kill.end(m, A, "killed")
        volume_requests.remove(m, RemoveVolume(made.volume_id))
    assert node.remains() == {}


async def test_volumes_of_a_failed_create_are_free_again(node: Node, storage: OpenedFolders) -> None:
    async with node.machine() as m:
        made = order()
        await m.volumes.create(made)
        node.driver.failures.append(
            InvalidArgument("cannot mount a volume at /data: data is a symbolic link")
        )
        with pytest.raises(InvalidArgument):
            await create.create(m, request_for("a", volume_mounts=(VolumeMount(made.volume_id, "/data"),)))
        assert storage.opened
        volume_requests.remove(m, RemoveVolume(made.volume_id))
    assert node.remains() == {}


@pytest.mark.usefixtures("storage")
async def test_a_sandbox_gets_no_foreign_unknown_or_ill_placed_volume(node: Node) -> None:
    async with node.machine() as m:
        foreign, own = order("others"), order()
        for made in (foreign, own):
            await m.volumes.create(made)
        for volume_id, path, error in (
            (foreign.volume_id, "/data", VolumeNotFound),
            (new_volume_id(), "/data", VolumeNotFound),
            (own.volume_id, "/proc", InvalidArgument),
            (own.volume_id, "/a/../b", InvalidArgument),
        ):
            with pytest.raises(error):
                await create.create(m, request_for("a", volume_mounts=(VolumeMount(volume_id, path),)))
        assert node.driver.specs == []
    assert node.remains() == {}


async def test_a_driver_without_volumes_says_so(node: Node) -> None:
    async with node.machine() as m:
        mounts = (VolumeMount(new_volume_id(), "/data"),)
        with pytest.raises(UnsupportedOption, match="isolation 'remembering'"):
            await create.create(m, request_for("a", volume_mounts=mounts))
    assert node.remains() == {}


async def test_a_driver_that_cannot_save_beside_volumes_refuses_before_anything_is_done(node: Node) -> None:
    """Its kernel may know files of a volume by name, which others may remove while it is on disk."""
    node.driver.able = Capabilities(
        name="remembering", shares_host_kernel=False, memory_snapshot=True, disk_snapshot=True, volumes=True
    )
    async with node.machine() as m:
        made = CreateVolume(new_volume_id(), "team", "token")
        await m.volumes.create(made)
        mounts = (VolumeMount(made.volume_id, "/data"),)
        with pytest.raises(UnsupportedOption, match="cannot pause or copy a sandbox with volumes"):
            await create.create(m, request_for("a", volume_mounts=mounts, on_timeout="pause"))
        assert node.driver.specs == []
        state = await create.create(m, request_for("a", volume_mounts=mounts))
        for act in (
            pause.pause(m, PauseSandbox(state.sandbox_id)),
            snapshots.take(m, TakeSnapshot(state.sandbox_id, "s")),
        ):
            with pytest.raises(UnsupportedOption, match="cannot pause or copy a sandbox with volumes"):
                await act
        assert [record.state for record in m.journal.read_all()] == ["running"]
        await kill.end(m, state.sandbox_id, "killed")


# --- what is on disk of a sandbox with volumes, where the driver can save beside them


@pytest.fixture
def saving(node: Node) -> Node:
    let_save(node, volumes=True, saves_beside_volumes=True)
    return node


async def running_with(m: Machine, *paths: str) -> list[VolumeMount]:
    """A sandbox that runs with a volume at each path."""
    mounts: list[VolumeMount] = []
    for path in paths:
        made = CreateVolume(new_volume_id(), "team", TOKEN)
        await m.volumes.create(made)
        mounts.append(VolumeMount(made.volume_id, path))
    await create.create(m, request_for("a", volume_mounts=tuple(mounts)))
    return mounts


def folder_of(node: Node, mount: VolumeMount) -> Path:
    return node.state / "volumes" / mount.volume_id / "files"


async def test_a_paused_sandbox_holds_its_volumes_and_has_them_again(saving: Node) -> None:
    """Also for a node that was started meanwhile; once it is killed they can be removed."""
    async with saving.machine() as m:
        (mount,) = await running_with(m, "/data")
        await pause.pause(m, PauseSandbox(A))
        with pytest.raises(Conflict, match=A):
            volume_requests.remove(m, RemoveVolume(mount.volume_id))
    async with saving.machine() as m:
        await reconcile.reconcile(m)
        with pytest.raises(Conflict, match=A):
            volume_requests.remove(m, RemoveVolume(mount.volume_id))
        await resume.resume(m, ResumeSandbox(A, 60))
        assert [[one.path for one in spec.mounts] for spec in saving.driver.specs] == [["/data"], ["/data"]]
        await pause.pause(m, PauseSandbox(A))
        await kill.end_or_forget(m, A, "killed")
        volume_requests.remove(m, RemoveVolume(mount.volume_id))


async def test_a_sandbox_whose_files_are_in_use_runs_on(saving: Node) -> None:
    async with saving.machine() as m:
        await running_with(m, "/data")
        saving.driver.save_failures += [InUse("in use"), InUse("in use")]
        for act in (pause.pause(m, PauseSandbox(A)), snapshots.take(m, TakeSnapshot(A, "s"))):
            with pytest.raises(InUse):
                await act
            assert (m.find(A).record.state, saving.driver.frozen) == ("running", set())
        assert saving.remains().get("images", set()) == set()


@pytest.mark.parametrize("changed", ["removed", "file", "folder", "link"])
async def test_what_is_gone_of_a_volume_is_named_and_once_it_is_back_the_sandbox_goes_on(
    saving: Node, changed: str
) -> None:
    """Folders end with a slash; what was let go of long ago is not asked for while the start succeeds."""
    saving.driver.kept_entries = "/data/kept", "/data/in/folder/", "/data/in/file", "/b/other"
    async with saving.machine() as m:
        mount, other = await running_with(m, "/data", "/b")
        files = folder_of(saving, mount)
        (files / "in" / "folder").mkdir(parents=True)
        for file in (files / "kept", files / "in" / "file", folder_of(saving, other) / "other"):
            file.touch()
        await pause.pause(m, PauseSandbox(A))
        (files / "in" / "folder").rmdir()
        (files / "in" / "file").unlink()
        if changed == "file":
            (files / "in").rmdir()
            (files / "in").touch()
        elif changed == "folder":
            (files / "in" / "folder").touch()
            (files / "in" / "file").mkdir()
        elif changed == "link":
            (files / "in" / "folder").symlink_to("/")
            (files / "in" / "file").mkdir()
        before = saving.remains()
        saving.driver.failures.append(Internal("no such file or directory"))
        with pytest.raises(SnapshotUnusable, match=r"kind: /data/in/file, /data/in/folder/ ") as refused:
            await resume.resume(m, ResumeSandbox(A, 60))
        assert "put it back" in (refused.value.hint or "")
        assert A in m.paused
        assert saving.remains() == before
        await resume.resume(m, ResumeSandbox(A, 60))
        assert m.find(A).record.state == "running"


async def test_what_fails_with_all_of_a_volume_there_is_told_as_it_is(saving: Node) -> None:
    saving.driver.kept_entries = ("/data/file",)
    async with saving.machine() as m:
        (mount,) = await running_with(m, "/data")
        (folder_of(saving, mount) / "file").touch()
        await pause.pause(m, PauseSandbox(A))
        saving.driver.failures.append(Internal("another reason"))
        with pytest.raises(Internal, match="another reason"):
            await resume.resume(m, ResumeSandbox(A, 60))
        assert A in m.paused


async def test_a_volume_that_is_gone_is_named_and_the_sandbox_stays_paused(saving: Node) -> None:
    """It cannot be removed by a request; an operator may have done so."""
    async with saving.machine() as m:
        (mount,) = await running_with(m, "/data")
        await pause.pause(m, PauseSandbox(A))
        folder = saving.state / "volumes" / mount.volume_id
        folder.rename(folder.with_name("away"))
        with pytest.raises(VolumeNotFound, match=mount.volume_id):
            await resume.resume(m, ResumeSandbox(A, 60))
        assert A in m.paused
        folder.with_name("away").rename(folder)
        await resume.resume(m, ResumeSandbox(A, 60))


async def test_copies_have_volumes_at_the_paths_of_their_source(saving: Node) -> None:
    """Others than its own are as good; others paths are not, since its kernel mounts nothing anew."""
    async with saving.machine() as m:
        mounts = await running_with(m, "/a", "/b")
        await snapshots.take(m, TakeSnapshot(A, "s"))
        turned = (VolumeMount(mounts[0].volume_id, "/b"), VolumeMount(mounts[1].volume_id, "/a"))
        bad = ((), turned[:1], (*turned, VolumeMount(mounts[0].volume_id, "/c")))
        for wrong in bad:
            with pytest.raises(InvalidArgument, match="at other paths: /a, /b"):
                await create.create(m, request_for("b", snapshot_id="s", volume_mounts=wrong))
        for letter, good in (("b", tuple(mounts)), ("c", turned)):
            await create.create(m, request_for(letter, snapshot_id="s", volume_mounts=good))
        assert [[one.path for one in spec.mounts] for spec in saving.driver.specs] == [
            ["/a", "/b"], ["/a", "/b"], ["/b", "/a"],
        ]  # fmt: skip


async def test_a_snapshot_of_a_sandbox_without_volumes_gets_none(saving: Node) -> None:
    async with saving.machine() as m:
        (mount,) = await running_with(m, "/data")
        await create.create(m, request_for("b"))
        await snapshots.take(m, TakeSnapshot(request_for("b").sandbox_id, "s"))
        with pytest.raises(InvalidArgument, match="it has none"):
            await create.create(m, request_for("c", snapshot_id="s", volume_mounts=(mount,)))
