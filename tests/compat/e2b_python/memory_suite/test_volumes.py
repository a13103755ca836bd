"""The official client's volumes in sandboxes that are paused and copied, with isolation gvisor."""

import uuid
from collections.abc import Iterator

import pytest

from e2b import Volume
from e2b.exceptions import SandboxException, VolumeException
from e2b_code_interpreter import Sandbox


@pytest.fixture
def volume() -> Iterator[Volume]:
    made = Volume.create(f"compat-{uuid.uuid4().hex}")
    yield made
    assert Volume.destroy(made.volume_id)


@pytest.fixture
def mounted(volume: Volume) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=120, volume_mounts={"/mnt/data": volume})
    yield made
    made.kill()


def test_memory_goes_on_and_the_volume_is_what_it_is_by_then(volume: Volume, mounted: Sandbox) -> None:
    mounted.run_code("x = 41; open('/mnt/data/inside', 'w').write('inside')")
    assert mounted.pause()
    assert volume.read_file("/inside") == "inside"
    volume.write_file("/outside", "outside", uid=1000, gid=1000)
    with pytest.raises(VolumeException, match="kill them first"):
        Volume.destroy(volume.volume_id)
    mounted.connect(timeout=120)
    assert mounted.run_code("x + 1").text == "42"
    assert mounted.files.read("/mnt/data/outside") == "outside"
    assert mounted.get_info().volume_mounts == [{"name": volume.name, "path": "/mnt/data"}]


def test_a_file_in_use_is_an_exception_and_the_sandbox_runs_on(mounted: Sandbox) -> None:
    mounted.run_code("kept = open('/mnt/data/log', 'w')")
    for act in (mounted.pause, mounted.create_snapshot, mounted.fork):
        with pytest.raises(SandboxException, match="/mnt/data/log by "):
            act()
    mounted.run_code("print('more', file=kept, flush=True); kept.close()")
    assert mounted.files.read("/mnt/data/log") == "more\n"
    assert mounted.pause()
    assert mounted.connect(timeout=120).files.read("/mnt/data/log") == "more\n"


def test_forks_and_snapshots_share_the_volume(volume: Volume, mounted: Sandbox) -> None:
    mounted.run_code("x = 1")
    (child,) = mounted.fork(count=1)
    snapshot = mounted.create_snapshot()
    copy = Sandbox.create(snapshot.snapshot_id, timeout=120)
    for name, made in (("child", child), ("copy", copy)):
        with made:
            assert made.run_code("x").text == "1"
            made.files.write(f"/mnt/data/{name}", name)
    assert sorted(entry.name for entry in mounted.files.list("/mnt/data")) == ["child", "copy"]
    assert mounted.delete_snapshot(snapshot.snapshot_id)


def test_a_snapshot_whose_volume_is_gone_says_so() -> None:
    volume = Volume.create(f"gone-{uuid.uuid4().hex}")
    with Sandbox.create(timeout=120, volume_mounts={"/mnt/data": volume}) as source:
        snapshot = source.create_snapshot()
    Volume.destroy(volume.volume_id)
    with pytest.raises(SandboxException, match=f"404: .*{volume.name}"):
        Sandbox.create(snapshot.snapshot_id)
    Sandbox.delete_snapshot(snapshot.snapshot_id)
