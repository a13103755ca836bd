"""What of builds goes when nobody uses it, what a pin keeps, and what goes early on a full disk."""

import shutil
from datetime import timedelta
from typing import NamedTuple

import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import assert_problem, create, write_template
from tests.fakes.workshop import FakeWorkshop
from tests.unit.api.test_builds import build, builder

from cloche_server.api import build_tidying
from cloche_server.api.control import ControlPlane
from cloche_server.api.layer_collection import MOST_AT_ONCE, Collector

pytestmark = pytest.mark.anyio
__all__ = ["builder"]

DAY_S = 86_400


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def collector(control: ControlPlane, workshop: FakeWorkshop) -> Collector:
    return Collector(control.config, control.store, workshop)


async def test_layers_go_by_their_last_use(
    builder: httpx.AsyncClient, collector: Collector, workshop: FakeWorkshop, clock: FakeClock
) -> None:
    """A step that a build has asked for stays; the list of a dry run is what goes."""
    await build(builder, "old", ["RUN", "one"])
    await build(builder, "used", ["RUN", "two"])
    workshop.layers = ["layer1", "layer2", "nobody's"]
    clock.advance(20 * DAY_S)
    assert (await collector.collect(clock.now())).layers == {"nobody's": 1}
    await build(builder, "used", ["RUN", "two"])
    clock.advance(20 * DAY_S)
    listed = await collector.collect(clock.now(), dry_run=True)
    assert workshop.layers == ["layer1", "layer2"]
    assert listed == await collector.collect(clock.now()) == ({"layer1": 1},)
    assert workshop.layers == ["layer2"]
    ran = len(workshop.ran)
    await build(builder, "old", ["RUN", "one"])
    assert len(workshop.ran) == ran + 1, "what has gone is not known any more"


async def test_what_a_pinned_template_is_built_from_stays(
    builder: httpx.AsyncClient, collector: Collector, workshop: FakeWorkshop, clock: FakeClock
) -> None:
    """Until it is unpinned; and nobody pins another team's."""
    await build(builder, "mine", ["RUN", "one"])
    workshop.layers = ["layer1"]
    assert (await builder.patch("/v2/templates/mine", json={"pinned": True})).status_code == 200
    assert (await builder.get("/templates/mine")).json()["pinned"] is True
    clock.advance(400 * DAY_S)
    assert (await collector.collect(clock.now())).layers == {}
    await builder.patch("/v2/templates/mine", json={"pinned": False})
    assert (await collector.collect(clock.now())).layers == {"layer1": 1}
    assert_problem(await builder.patch("/v2/templates/base", json={"pinned": True}), 403)


async def test_builds_without_a_tag_go_when_nothing_was_made_of_them_for_long(
    builder: httpx.AsyncClient, control: ControlPlane, workshop: FakeWorkshop, clock: FakeClock
) -> None:
    """Not those that a tag leads to, that a sandbox stands on, or whose template is pinned."""
    first = await build(builder, "plain")
    in_use = await build(builder, "used")
    await create(builder, templateID="used", timeout=86_000)
    pinned = await build(builder, "pinned")
    await builder.patch("/v2/templates/pinned", json={"pinned": True})
    tagged = await build(builder, "tagged:v1")
    newest = [(await build(builder, name))[1] for name in ("plain", "used", "pinned", "tagged")]
    for build_id in (*newest, first[1], in_use[1], pinned[1], tagged[1]):
        write_template(control.config, build_id=build_id, team_id="team", name=build_id)
    await build_tidying.tidy(control)
    assert workshop.removed == []
    clock.advance((control.config.builds.keep_builds_days + 1) * DAY_S)
    await build_tidying.tidy(control)
    assert workshop.removed == [first[1]]


async def test_on_a_disk_that_is_nearly_full_what_was_used_longest_ago_goes_early(
    builder: httpx.AsyncClient,
    collector: Collector,
    workshop: FakeWorkshop,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only as much as makes room; and nothing that a build has asked for that runs."""
    free = 10 << 30
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free - (len(workshop.layers) << 30)))
    for name, days in (("a", 8), ("b", 2), ("c", 0)):
        await build(builder, name, ["RUN", name])
        clock.advance(days * DAY_S)
    clock.advance(7200)
    workshop.layers = ["layer1", "layer2", "layer3"]
    assert await collector.make_room(clock.now(), None) is None
    free = 4 << 30
    assert await collector.make_room(clock.now(), None)
    assert workshop.layers == ["layer2", "layer3"]
    free = 0
    await collector.make_room(clock.now(), clock.now() - timedelta(days=1, hours=2))
    assert workshop.layers == ["layer3"]
    await collector.make_room(clock.now(), None)
    assert workshop.layers == []


async def test_one_pass_has_an_end(collector: Collector, workshop: FakeWorkshop, clock: FakeClock) -> None:
    """And the next one goes on."""
    workshop.layers = [f"layer{number}" for number in range(MOST_AT_ONCE + 7)]
    assert len((await collector.collect(clock.now())).layers) == MOST_AT_ONCE
    assert len((await collector.collect(clock.now())).layers) == 7
