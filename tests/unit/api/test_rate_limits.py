"""A key that asks too fast is told when to come back, and no other key notices."""

import httpx
import msgspec
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import assert_problem, create, make_key
from tests.fakes.placement import FakePlacement

from cloche_server.api import rate_limits
from cloche_server.api.app import routes_of
from cloche_server.api.control import ControlPlane
from cloche_server.api.rate_limits import TokenBuckets
from cloche_server.config import Config, Limits

pytestmark = pytest.mark.anyio


@pytest.fixture
def config(config: Config) -> Config:
    slow = Limits(max_sandboxes=1, requests_per_s=0.5, requests_burst=4, creates_per_s=0.25, creates_burst=2)
    return msgspec.structs.replace(config, limits=slow)


async def test_a_request_too_many_is_429_and_says_when_to_come_back(
    client: httpx.AsyncClient, clock: FakeClock
) -> None:
    for _ in range(4):
        assert (await client.get("/v2/sandboxes")).status_code == 200
    refused = await client.get("/v2/sandboxes")
    assert_problem(refused, 429, "too many requests")
    assert (refused.headers["retry-after"], refused.headers["should-retry"]) == ("2", "true")
    clock.advance(1.9)
    assert (await client.get("/v2/sandboxes")).headers["retry-after"] == "1"
    clock.advance(0.1)
    assert (await client.get("/v2/sandboxes")).status_code == 200


async def test_a_create_too_many_leaves_nothing_and_may_be_repeated_though_a_create(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    await create(client)
    full = await client.post("/v2/sandboxes", json={"templateID": "base"})
    assert_problem(full, 429, "max_sandboxes")
    assert full.headers["should-retry"] == "false"
    refused = await client.post("/v2/sandboxes", json={"templateID": "base"})
    assert_problem(refused, 429, "too many creates")
    assert (refused.headers["retry-after"], refused.headers["should-retry"]) == ("4", "true")
    assert len(placement.created) == 1
    assert (await client.get("/v2/sandboxes")).status_code == 200


def test_creates_are_sandboxes_forks_and_snapshots(control: ControlPlane) -> None:
    assert {(route.method, route.pattern) for route in routes_of(control) if route.creates} == {
        ("POST", "/v2/sandboxes"),
        ("POST", "/sandboxes"),
        ("POST", "/sandboxes/{id}/fork"),
        ("POST", "/sandboxes/{id}/snapshots"),
    }


async def test_keys_are_apart_also_those_of_one_team(
    client: httpx.AsyncClient, control: ControlPlane
) -> None:
    other = {"X-API-KEY": make_key(control, "default")}
    while (await client.get("/v2/sandboxes")).status_code == 200:
        pass
    assert (await client.get("/v2/sandboxes", headers=other)).status_code == 200


async def test_requests_without_a_valid_key_and_of_health_take_nothing(
    nobody: httpx.AsyncClient, control: ControlPlane
) -> None:
    for _ in range(10):
        assert (await nobody.get("/health")).status_code == 204
        assert_problem(await nobody.get("/v2/sandboxes", headers={"X-API-KEY": "x"}), 401)
    key = {"X-API-KEY": make_key(control, "default")}
    assert (await nobody.get("/v2/sandboxes", headers=key)).status_code == 200


# --- the buckets alone --------------------


@pytest.mark.parametrize("per_s", [0.1, 0.7, 3, 120, 200])
def test_a_bucket_gives_its_burst_then_its_rate(per_s: float) -> None:
    buckets = TokenBuckets(per_s, burst=50)
    assert [buckets.take("k", 7.0) for _ in range(50)] == [0.0] * 50
    now_s = 7.0
    for _ in range(20):
        wait_s = buckets.take("k", now_s)
        assert wait_s == pytest.approx(1 / per_s, rel=1e-4)
        now_s += wait_s + 1e-9
        assert buckets.take("k", now_s) == 0


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    buckets = TokenBuckets(10, burst=2)
    buckets.take("k", 0.0)
    assert [buckets.take("k", 1e6) > 0 for _ in range(3)] == [False, False, True]


def test_zero_a_second_is_no_limit_and_remembers_nothing() -> None:
    buckets = TokenBuckets(0, burst=1)
    assert {buckets.take("k", 0.0) for _ in range(100)} == {0.0}
    assert len(buckets) == 0


def test_full_buckets_are_forgotten() -> None:
    buckets = TokenBuckets(1, burst=5)
    for number in range(100):
        buckets.take(f"k{number}", 0.0)
    assert len(buckets) == 100
    buckets.take("late", 1.0)
    assert len(buckets) == 1


def test_memory_is_bounded_and_the_key_in_use_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_BUCKETS", 10)
    buckets = TokenBuckets(0.001, burst=30)
    for number in range(30):
        buckets.take("busy", 0.0)
        buckets.take(f"k{number}", 0.0)
        assert len(buckets) <= 10
    assert buckets.take("busy", 0.0) > 0
