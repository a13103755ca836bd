"""Images of an agent alone, over a driver that only remembers: made once, used where they fit."""

from typing import Any

import pytest
from tests.unit.node.conftest import Node
from tests.unit.node.test_ahead import until

from cloche_server.node import agent_images, ahead, builds, kill, pruning, reconcile
from cloche_server.node.build_messages import OpenBuild, PruneLayers
from cloche_server.node.machine import Machine
from cloche_wire.errors import Internal, ResourceExhausted

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("able")]


def step(m: Machine) -> OpenBuild:
    """A sandbox over one layer of a step."""
    layer = m.layers.begin()
    m.layers.begun(layer).mkdir()
    m.layers.commit(layer, "team", 0, 0)
    return OpenBuild("build", "team", (layer,), isolation="remembering")


async def opened(m: Machine, node: Node, **changes: Any) -> bool:
    """Open and end a sandbox of a build; whether it went on from an image."""
    build = await builds.open_build(m, step(m))
    spec = node.driver.specs[-1]
    assert spec.keeps_layer
    await kill.end(m, build.sandbox_id, "killed")
    return spec.image is not None


async def test_it_is_made_over_a_root_of_ours_for_nobody_and_once(node: Node) -> None:
    async with node.machine() as m:
        assert not await opened(m, node)
        assert m.demand.builds == {"remembering"}
        assert await agent_images.make(m, "remembering")
        maker = node.driver.specs[-1]
        assert [sorted(path.name for path in layer.iterdir()) for layer in maker.layers] == [["proc", "tmp"]]
        assert (maker.keeps_layer, maker.image, maker.hostname) == (True, None, "build")
        assert not agent_images.is_missing(m, "remembering")
        assert m.live == {}
        assert await opened(m, node)
        assert await opened(m, node)
        (name,) = node.remains()["images"]
        assert name.startswith("agent-remembering-")


async def test_what_goes_on_has_an_id_of_its_boot_and_layers_of_its_own(node: Node) -> None:
    async with node.machine() as m:
        await agent_images.make(m, "remembering")
        await opened(m, node)
        await opened(m, node)
        maker, first, second = node.driver.specs
        assert len({maker.boot_id, first.boot_id, second.boot_id}) == 3
        assert len({maker.layers, first.layers, second.layers}) == 3


async def test_a_root_that_it_does_not_fit_is_started(node: Node) -> None:
    node.driver.other_roots = False
    async with node.machine() as m:
        await agent_images.make(m, "remembering")
        assert not await opened(m, node)
        assert m.demand.builds == set()


async def test_one_that_does_not_come_up_is_removed_and_the_build_is_started(node: Node) -> None:
    async with node.machine() as m:
        await agent_images.make(m, "remembering")
        node.driver.failures = [Internal("another machine")]
        assert not await opened(m, node)
        assert agent_images.is_missing(m, "remembering")
        assert node.remains().get("images") is None
        await agent_images.make(m, "remembering")
        assert await opened(m, node)


async def test_after_three_of_those_none_is_used_any_more(node: Node) -> None:
    async with node.machine() as m:
        for _ in range(3):
            await agent_images.make(m, "remembering")
            node.driver.failures = [Internal("another machine")]
            assert not await opened(m, node)
        assert not agent_images.is_missing(m, "remembering")
        await agent_images.make(m, "remembering")
        assert not await opened(m, node)


async def test_an_error_of_a_start_is_told_and_blames_no_image(node: Node) -> None:
    async with node.machine() as m:
        node.driver.failures = [Internal("no kernel")]
        with pytest.raises(Internal):
            await opened(m, node)
        await agent_images.make(m, "remembering")
        node.driver.failures = [Internal("no kernel"), Internal("no kernel")]
        with pytest.raises(Internal):
            await opened(m, node)
        assert m.live == {}


async def test_one_that_cannot_be_made_leaves_nothing_and_is_not_tried_at_once(node: Node) -> None:
    async with node.machine() as m:
        node.driver.save_failures = [OSError(28, "No space left on device")]
        assert not await agent_images.make(m, "remembering")
        assert node.remains() == {}


async def test_a_damaged_one_is_made_again(node: Node) -> None:
    async with node.machine() as m:
        await agent_images.make(m, "remembering")
    (pages,) = node.state.glob("images/agent-*/pages.img")
    pages.write_text("another")
    async with node.machine() as m:
        assert not await opened(m, node)
        assert m.demand.builds == {"remembering"}
        await agent_images.make(m, "remembering")
        assert await opened(m, node)


async def test_it_outlives_a_restart_and_an_older_one_goes_with_the_next(node: Node) -> None:
    old = node.state / "images" / "agent-remembering-0123456789abcdef"
    other = node.state / "images" / "agent-another-0123456789abcdef"
    for folder in (old, other):
        folder.mkdir(parents=True)
        (folder / "manifest").write_bytes(b"of another version")
    async with node.machine() as m:
        await reconcile.reconcile(m)
        assert old.exists()
        await agent_images.make(m, "remembering")
        assert not old.exists()
        assert other.exists()
    async with node.machine() as m:
        await reconcile.reconcile(m)
        assert await opened(m, node)


async def test_it_holds_no_layers_back(node: Node) -> None:
    async with node.machine() as m:
        await agent_images.make(m, "remembering")
        unneeded = step(m).layers
        pruned = pruning.prune(m, PruneLayers([], -(10**10)))  # this clock is behind
        assert tuple(layer.layer_id for layer in pruned.layers) == unneeded


async def test_the_keeper_makes_it_beside_a_build(node: Node) -> None:
    async with node.machine() as m:
        keeper = m.tasks.create_task(ahead.run(m))
        assert not await opened(m, node)
        await until(lambda: not agent_images.is_missing(m, "remembering") and not m.live)
        assert await opened(m, node)
        keeper.cancel()


async def test_a_node_that_is_full_is_left_to_those_who_ask(node: Node) -> None:
    node.limit = 0
    async with node.machine() as m:
        with pytest.raises(ResourceExhausted):
            await builds.open_build(m, step(m))
        assert not await agent_images.make(m, "remembering")
