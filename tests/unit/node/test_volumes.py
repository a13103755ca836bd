"""The node's part in volumes, without a kernel: storage that only opens a folder."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.node.conftest import Node, request_for

from cloche_server.ids import new_volume_id
from cloche_server.isolation.base import Capabilities
from cloche_server.node import create, kill, pause, reconcile, snapshots, volume_requests, volumes
from cloche_server.node.messages import (
    CreateVolume,
    OpenVolume,
    PauseSandbox,
    RemoveVolume,
    TakeSnapshot,
    VolumeMount,
)
from cloche_wire.errors import (
    AlreadyExists,
    ClocheError,
    Conflict,
    InvalidArgument,
    NotEnoughSpace,
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


async def test_a_sandbox_with_volumes_is_neither_paused_nor_copied_nor_made_of_a_copy(node: Node) -> None:
    """Its kernel knows files of a volume by name, which others may remove while it is on disk."""
    node.driver.able = Capabilities(
        name="remembering", shares_host_kernel=False, memory_snapshot=True, disk_snapshot=True, volumes=True
    )
    async with node.machine() as m:
        made = CreateVolume(new_volume_id(), "team", "token")
        await m.volumes.create(made)
        mounts = (VolumeMount(made.volume_id, "/data"),)
        with pytest.raises(UnsupportedOption, match="has volumes cannot be paused"):
            await create.create(m, request_for("a", volume_mounts=mounts, on_timeout="pause"))
        with pytest.raises(UnsupportedOption, match="made of a snapshot"):
            await create.create(m, request_for("a", volume_mounts=mounts, snapshot_id="s"))
        assert node.driver.specs == []
        state = await create.create(m, request_for("a", volume_mounts=mounts))
        for act in (
            pause.pause(m, PauseSandbox(state.sandbox_id)),
            snapshots.take(m, TakeSnapshot(state.sandbox_id, "s")),
        ):
            with pytest.raises(UnsupportedOption, match="has volumes cannot be paused or copied"):
                await act
        assert [record.state for record in m.journal.read_all()] == ["running"]
        await kill.end(m, state.sandbox_id, "killed")
