"""`kill -9` of the node in the middle of making and mounting volumes."""

import pytest
from tests.integration.node.conftest import NEEDS_A_NODE, NodeProcess
from tests.support import census
from tests.support.waiting import until

from cloche_server.ids import new_volume_id
from cloche_server.node import messages
from cloche_wire.errors import Unavailable, VolumeNotFound

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE, pytest.mark.needs("loop")]


def order() -> messages.CreateVolume:
    return messages.CreateVolume(new_volume_id(), "team", "vol_token")


def loops(node: NodeProcess) -> list[str]:
    return list(census.loops([node.state]))


def mounts_of(volume: messages.CreateVolume) -> tuple[messages.VolumeMount, ...]:
    return (messages.VolumeMount(volume.volume_id, "/data"),)


@pytest.mark.parametrize("point", ["volume.image:1", "volume.make:1"])
async def test_a_volume_is_made_in_full_or_not_at_all(own_node: NodeProcess, point: str) -> None:
    """A killed node leaves a volume that works, or after its next start nothing of it."""
    own_node.stop()
    own_node.start(point)
    own_node.arm()
    made = order()
    with pytest.raises(Unavailable):
        await own_node.call("create_volume", made)
    own_node.wait()
    until(lambda: not loops(own_node), within_s=10, what="no loop device")
    own_node.start()
    left = [path.name for path in (own_node.state / "volumes").iterdir()]
    if point == "volume.image:1":
        assert left == []
        with pytest.raises(VolumeNotFound):
            await own_node.create(volume_mounts=mounts_of(made))
    else:
        assert left == [made.volume_id]
        await own_node.end(await own_node.create(volume_mounts=mounts_of(made)))


@pytest.mark.parametrize("point", ["volume.mount:1", "layer:1", "start:1"])
async def test_a_create_that_was_cut_off_holds_no_volume(own_node: NodeProcess, point: str) -> None:
    """Whatever had been mounted goes, and the volume can be removed."""
    made = order()
    await own_node.call("create_volume", made)
    own_node.stop()
    own_node.start(point)
    own_node.arm()
    with pytest.raises(Unavailable):
        await own_node.create(volume_mounts=mounts_of(made))
    own_node.wait()
    own_node.start()
    until(lambda: not loops(own_node), within_s=10, what="no loop device")
    await own_node.call("remove_volume", messages.RemoveVolume(made.volume_id))
    assert list((own_node.state / "volumes").iterdir()) == []
