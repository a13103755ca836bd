"""GET /v2/sandboxes and /sandboxes."""

from urllib.parse import quote, urlencode

import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import assert_problem, create

pytestmark = pytest.mark.anyio


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["sandboxID"] for one in answer.json()]


def encoded(metadata: dict[str, str]) -> str:
    """As the official Python client does it; the query encodes it once more."""
    return urlencode({quote(key): quote(value) for key, value in metadata.items()})


async def make_three(client: httpx.AsyncClient, clock: FakeClock) -> list[str]:
    made: list[str] = []
    for number in range(3):
        made.append(await create(client, metadata={"n": str(number), "all": "yes"}))
        clock.advance(1)
    return made


async def test_the_newest_comes_first_unless_asked_otherwise(
    client: httpx.AsyncClient, clock: FakeClock
) -> None:
    made = await make_three(client, clock)
    assert ids(await client.get("/v2/sandboxes")) == made[::-1]
    assert ids(await client.get("/v2/sandboxes?order=asc")) == made
    assert ids(await client.get("/sandboxes")) == made[::-1]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_have_the_asked_size_and_lead_to_each_other(
    client: httpx.AsyncClient, order: str
) -> None:
    # All start at the same moment: the id decides.
    made = {await create(client) for _ in range(5)}
    seen: list[str] = []
    token = ""
    sizes: list[int] = []
    while True:
        answer = await client.get("/v2/sandboxes", params={"limit": "2", "order": order, "nextToken": token})
        sizes.append(len(ids(answer)))
        seen += ids(answer)
        token = answer.headers.get("x-next-token", "")
        if not token:
            break
    assert sizes == [2, 2, 1]
    assert set(seen) == made
    assert len(seen) == 5


async def test_a_full_last_page_has_no_token(client: httpx.AsyncClient) -> None:
    await create(client)
    assert "x-next-token" not in (await client.get("/v2/sandboxes?limit=1")).headers


async def test_metadata_has_to_match_in_every_pair(client: httpx.AsyncClient, clock: FakeClock) -> None:
    made = await make_three(client, clock)
    for path in ("/v2/sandboxes", "/sandboxes"):
        for wish, found in [
            ({"n": "1"}, [made[1]]),
            ({"n": "1", "all": "no"}, []),
            ({"all": "yes"}, made[::-1]),
        ]:
            assert ids(await client.get(path, params={"metadata": encoded(wish)})) == found


@pytest.mark.parametrize(
    "text", ['a"b', "a&b=c", "ü %", "1+1 %2B", "$.x", "'; drop table sandboxes; --", "a.b[0]", ""]
)
async def test_any_character_may_stand_in_metadata(client: httpx.AsyncClient, text: str) -> None:
    made = await create(client, metadata={f"k{text}": text})
    await create(client, metadata={f"k{text}": "else"})
    query = {"metadata": encoded({f"k{text}": text})}
    assert ids(await client.get("/v2/sandboxes", params=query)) == [made]


async def test_states_are_lists_in_either_spelling(client: httpx.AsyncClient) -> None:
    made = await create(client)
    for query in ("state=running", "state=running,paused", "state=running&state=paused", "state=", ""):
        assert ids(await client.get(f"/v2/sandboxes?{query}")) == [made]
    assert ids(await client.get("/v2/sandboxes?state=paused")) == []


async def test_started_after_and_template_narrow_the_list(
    client: httpx.AsyncClient, clock: FakeClock
) -> None:
    made = await make_three(client, clock)
    assert ids(await client.get("/v2/sandboxes?startedAfter=2026-01-01T00:00:01Z")) == made[:0:-1]
    assert ids(await client.get("/v2/sandboxes?startedAfter=2026-01-01T01:00:01+01:00")) == made[:0:-1]
    assert ids(await client.get("/v2/sandboxes?template=base")) == made[::-1]
    assert ids(await client.get("/v2/sandboxes?template=nope")) == []


async def test_a_team_sees_its_own_only(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    await create(client, metadata={"a": "b"})
    for path in ("/v2/sandboxes", "/sandboxes", "/v2/sandboxes?metadata=a%3Db"):
        assert ids(await stranger.get(path)) == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=x",
        "limit=99999999999999999999",
        "order=up",
        "order=asc;drop",
        "state=dead",
        "startedAfter=yesterday",
        "startedAfter=2026-01-01T00:00:00",
        "startedAfter=0001-01-01T00:00:00%2B14:00",
        "startedAfter=5",
        "nextToken=abc",
        "nextToken=%27",
        "nextToken=MDAwMS0wMS0wMVQwMDowMDowMCsxNDowMCB4",
        "metadata=novalue",
        "metadata=a%3D%25ff",
        "metadata=" + "%26".join(["a%3Db"] * 65),
    ],
)
async def test_a_query_that_means_nothing_is_400(client: httpx.AsyncClient, query: str) -> None:
    assert_problem(await client.get(f"/v2/sandboxes?{query}"), 400)
