"""Idempotency-Key: one key, one sandbox."""

import anyio
import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import assert_problem
from tests.fakes.placement import FakePlacement

from cloche_wire.errors import Unavailable

pytestmark = pytest.mark.anyio
BODY = {"templateID": "base"}


async def ask(client: httpx.AsyncClient, key: str = "k-1", **changes: object) -> httpx.Response:
    return await client.post("/v2/sandboxes", json=BODY | changes, headers={"Idempotency-Key": key})


async def test_the_same_request_again_gives_the_same_sandbox(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    first, second = await ask(client), await ask(client)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert len(placement.created) == 1


async def test_another_key_gives_another_sandbox(client: httpx.AsyncClient) -> None:
    assert (await ask(client)).json()["sandboxID"] != (await ask(client, "k-2")).json()["sandboxID"]


async def test_the_same_key_with_another_body_is_409(client: httpx.AsyncClient) -> None:
    await ask(client)
    assert_problem(await ask(client, timeout=5), 409, "idempotency key")


async def test_a_key_is_the_teams_own(client: httpx.AsyncClient, stranger: httpx.AsyncClient) -> None:
    first, second = await ask(client), await ask(stranger, timeout=7)
    assert second.status_code == 201
    assert first.json()["sandboxID"] != second.json()["sandboxID"]


async def test_a_retry_while_the_first_is_being_made_waits_for_it(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    placement.gate = anyio.Event()
    answers: list[httpx.Response] = []

    async def run() -> None:
        answers.append(await ask(client))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await placement.asked.wait()
        tasks.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        placement.gate.set()
    assert answers[0].json() == answers[1].json()
    assert len(placement.created) == 1


async def test_a_failed_create_frees_its_key(client: httpx.AsyncClient, placement: FakePlacement) -> None:
    placement.fails = Unavailable("down")
    assert_problem(await ask(client), 503)
    placement.fails = None
    assert (await ask(client)).status_code == 201


async def test_a_key_whose_sandbox_has_ended_is_409(client: httpx.AsyncClient) -> None:
    made = (await ask(client)).json()["sandboxID"]
    await client.delete(f"/sandboxes/{made}")
    assert_problem(await ask(client), 409, "has ended")


async def test_a_key_is_forgotten_after_a_day(client: httpx.AsyncClient, clock: FakeClock) -> None:
    first = await ask(client)
    clock.advance(24 * 3600 + 1)
    assert (await ask(client)).json()["sandboxID"] != first.json()["sandboxID"]


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "'; --"])
async def test_a_key_of_another_form_is_400(client: httpx.AsyncClient, key: str) -> None:
    assert_problem(await ask(client, key), 400, "Idempotency-Key")
