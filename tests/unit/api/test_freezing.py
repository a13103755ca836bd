"""Freezing, and what a create says about idleness: what is answered, what the node is told."""

import httpx
import msgspec
import pytest
from tests.fakes.control_plane import assert_problem, client_of, create, make_key
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_server.config import Idle
from cloche_server.node.messages import SetTimeout
from cloche_wire.errors import Conflict, Internal, UnsupportedOption

pytestmark = pytest.mark.anyio


async def test_frozen_one_is_shown_as_such_and_runs(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made, other = await create(client), await create(client)
    answer = await client.post(f"/sandboxes/{made}/freeze")
    assert (answer.status_code, answer.content) == (204, b"")
    shown = (await client.get(f"/sandboxes/{made}")).json()
    assert (shown["state"], shown["frozen"]) == ("running", True)
    listed = {one["sandboxID"]: one["frozen"] for one in (await client.get("/v2/sandboxes")).json()}
    assert listed == {made: True, other: False}


async def test_connect_has_it_go_on_and_a_new_time_out_does_not(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    await client.post(f"/v2/sandboxes/{made}/connect", json={"timeout": 60})
    await client.post(f"/sandboxes/{made}/timeout", json={"timeout": 60})
    assert placement.timeouts == [
        SetTimeout(made, 60, only_extend=True, is_needed=True),
        SetTimeout(made, 60),
    ]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (UnsupportedOption("isolation 'x' cannot freeze a sandbox on this machine"), 400),
        (Conflict("something else is being done with the sandbox"), 409),
        (Internal("a process of it does not stand still"), 500),
    ],
)
async def test_why_it_is_not_frozen_is_told(
    client: httpx.AsyncClient, placement: FakePlacement, failure: Exception, status: int
) -> None:
    made = await create(client)
    placement.fails_pause = failure  # type: ignore[assignment]
    assert_problem(await client.post(f"/sandboxes/{made}/freeze"), status, str(failure)[:20])


async def test_paused_ended_and_foreign_ones_cannot_be_frozen(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client)
    assert_problem(await stranger.post(f"/sandboxes/{made}/freeze"), 404)
    await client.post(f"/sandboxes/{made}/pause")
    assert_problem(await client.post(f"/sandboxes/{made}/freeze"), 409, "paused")
    await client.delete(f"/sandboxes/{made}")
    assert_problem(await client.post(f"/sandboxes/{made}/freeze"), 404)
    assert not placement.frozen


async def test_what_is_to_become_of_an_idle_one_is_passed_on_shown_and_inherited(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    made = await create(client, idle={"afterSeconds": 30, "action": "pause"})
    order = placement.created[-1]
    assert (order.idle_after_s, order.idle_action, order.wakes_on_traffic) == (30, "pause", True)
    shown = (await client.get(f"/sandboxes/{made}")).json()["lifecycle"]
    assert shown["idle"] == {"afterSeconds": 30, "action": "pause"}
    assert (await client.post(f"/sandboxes/{made}/fork", json={})).status_code == 201
    assert placement.created[-1].idle_after_s == 30


async def test_without_a_wish_the_settings_count_and_zero_is_a_wish(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    await create(client)
    assert placement.created[-1].idle_after_s == 0
    settings = msgspec.structs.replace(control.config, idle=Idle(after_s=45))
    told = control._replace(config=settings)
    async with client_of(told, make_key(told, "default")) as other:
        await create(other)
        await create(other, idle={"afterSeconds": 0})
    assert [order.idle_after_s for order in placement.created[-2:]] == [45, 0]


@pytest.mark.parametrize(
    "idle", [{"afterSeconds": -1}, {"afterSeconds": 10**9}, {"action": "sleep"}, {"afterSeconds": 1.5}, 5]
)
async def test_nonsense_is_refused(client: httpx.AsyncClient, idle: object) -> None:
    assert_problem(await client.post("/v2/sandboxes", json={"templateID": "base", "idle": idle}), 400)
