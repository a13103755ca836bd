"""The table follows the node, outlives it, and never tells a client of a fresh sandbox that there is none."""

import asyncio
from pathlib import Path

import pytest

from cloche_server.edge import route_table
from cloche_server.edge.refusal import NOT_FOUND, Refusal
from cloche_server.edge.route_table import RouteTable
from cloche_server.node.messages import Route

pytestmark = pytest.mark.anyio


def route(sandbox_id: str, token: str = "") -> Route:
    return Route(sandbox_id, "/a", "/i", token or f"token-{sandbox_id}")


@pytest.fixture
def table() -> RouteTable:
    table = RouteTable(Path("/nowhere"))
    table.replace([route("ione")])
    return table


async def test_a_known_sandbox_is_found_by_id_and_by_token(table: RouteTable) -> None:
    assert (await table.find("ione")).sandbox_id == "ione"
    found = await table.find_by_token("token-ione")
    assert found is not None
    assert found.sandbox_id == "ione"


async def test_a_route_that_comes_late_is_waited_for(table: RouteTable) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(table.find("itwo"))
        tasks.create_task(table.wait_for(lambda: False, 0.01))  # something else waits too
        await asyncio.sleep(0)
        table.add(route("itwo"))
    assert asked.result().sandbox_id == "itwo"


async def test_an_unknown_sandbox_is_not_found(table: RouteTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_table, "LATE_ROUTE_S", 0.01)
    with pytest.raises(Refusal, match=NOT_FOUND):
        await table.find("itwo")
    assert await table.find_by_token("wrong") is None


async def test_a_new_sandbox_is_waited_for_while_the_feed_is_down(
    table: RouteTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_table, "LATE_ROUTE_S", 0.0)
    table._is_fed = False  # as `follow` leaves it when the node goes away
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(table.find("itwo"))
        await asyncio.sleep(0)
        table.replace([route("ione"), route("itwo")])
    assert asked.result().sandbox_id == "itwo"


async def test_a_sandbox_known_to_be_gone_is_not_waited_for(table: RouteTable) -> None:
    table.remove("ione")
    async with asyncio.timeout(route_table.LATE_ROUTE_S / 2):
        with pytest.raises(Refusal, match=NOT_FOUND):
            await table.find("ione")


async def test_removal_cuts_every_stream_of_that_sandbox_only(table: RouteTable) -> None:
    table.add(route("itwo"))
    cut: list[str] = []
    with table.attached("ione", lambda: cut.append("one")), table.attached("itwo", lambda: cut.append("two")):
        table.remove("ione")
    assert cut == ["one"]
    table.remove("itwo")
    assert cut == ["one"]


async def test_a_new_list_cuts_what_is_missing_from_it(table: RouteTable) -> None:
    cut: list[int] = []
    with table.attached("ione", lambda: cut.append(1)):
        table.replace([route("itwo")])
    assert cut == [1]
    assert await table.find_by_token("token-ione") is None


async def test_a_stream_to_a_sandbox_that_just_went_is_refused(table: RouteTable) -> None:
    table.remove("ione")
    with pytest.raises(Refusal, match=NOT_FOUND), table.attached("ione", lambda: None):
        raise AssertionError


async def test_one_sandbox_cannot_take_all_connections(
    table: RouteTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_table, "MAX_STREAMS", 1)
    full = pytest.raises(Refusal, match="429")
    with table.attached("ione", lambda: None), full, table.attached("ione", lambda: None):
        raise AssertionError
    with table.attached("ione", lambda: None):
        pass


async def test_a_changed_token_replaces_the_old_one(table: RouteTable) -> None:
    table.add(route("ione", "fresh"))
    assert await table.find_by_token("token-ione") is None
    assert await table.find_by_token("fresh") is not None


async def test_before_the_first_list_requests_wait_and_then_get_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_table, "FIRST_TABLE_S", 0.01)
    with pytest.raises(Refusal, match="503"):
        await RouteTable(Path("/nowhere")).find("ione")
