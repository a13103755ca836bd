"""Teams and keys over HTTP: the operator makes keys, and a key cannot."""

from collections.abc import AsyncIterator

import httpx
import pytest
from tests.fakes.control_plane import assert_problem, client_of, create
from tests.support.openapi import load, misfits
from tests.support.source import ROOT

from cloche_server.api.control import ControlPlane
from cloche_server.store.first_key import ensure_admin_token

pytestmark = pytest.mark.anyio
SPEC = load(ROOT / "specs" / "control_plane.yaml")


def team_of(control: ControlPlane, name: str) -> str:
    return next(key.team_id for key, team in control.store.keys.list() if team == name)


@pytest.fixture
async def admin(control: ControlPlane, client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """The operator, acting for the default team."""
    ensure_admin_token(control.config)
    async with client_of(control, None) as made:
        made.headers["X-Admin-Token"] = (control.config.state_dir / "admin-token").read_text().strip()
        made.headers["X-Team-ID"] = team_of(control, "default")
        yield made


def fits(schema: str, value: object) -> bool:
    return misfits(SPEC, {"$ref": f"#/components/schemas/{schema}"}, value) == []


async def test_a_key_learns_its_own_team_and_no_other(
    client: httpx.AsyncClient, control: ControlPlane
) -> None:
    (team,) = (await client.get("/teams")).json()
    assert fits("Team", team)
    assert (team["teamID"], team["apiKey"]) == (team_of(control, "default"), client.headers["X-API-KEY"])
    async with client_of(control, None) as bearer:
        bearer.headers["Authorization"] = f"Bearer {client.headers['X-API-KEY']}"
        assert (await bearer.get("/teams")).json() == [team]


async def test_a_made_key_works_until_it_is_revoked_and_is_listed_by_its_mask(
    admin: httpx.AsyncClient, control: ControlPlane
) -> None:
    answer = await admin.post("/api-keys", json={"name": "for the agents"})
    made = answer.json()
    assert answer.status_code == 201
    assert fits("CreatedKey", made)
    key = made.pop("key")
    listed = (await admin.get("/api-keys")).json()
    assert made in listed
    assert all(fits("TeamApiKey", one) for one in listed)
    mask = made["mask"]
    assert key.startswith(mask["prefix"] + mask["maskedValuePrefix"])
    assert key.endswith(mask["maskedValueSuffix"])
    assert len(key) == len(mask["prefix"]) + mask["valueLength"]
    async with client_of(control, key) as user:
        assert (await user.get("/v2/sandboxes")).status_code == 200
        assert (await admin.patch(f"/api-keys/{made['id']}", json={"name": "other"})).status_code == 200
        assert (await admin.delete(f"/api-keys/{made['id']}")).status_code == 204
        assert_problem(await user.get("/v2/sandboxes"), 401)
    assert_problem(await admin.delete(f"/api-keys/{made['id']}"), 404)
    assert made["id"] not in [one["id"] for one in (await admin.get("/api-keys")).json()]


async def test_keys_of_one_team_are_out_of_reach_for_another(
    admin: httpx.AsyncClient, stranger: httpx.AsyncClient, control: ControlPlane
) -> None:
    (foreign,) = [key.id for key, team in control.store.keys.list() if team == "others"]
    assert_problem(await admin.delete(f"/api-keys/{foreign}"), 404)
    assert_problem(await admin.patch(f"/api-keys/{foreign}", json={"name": "x"}), 404)
    assert foreign not in [one["id"] for one in (await admin.get("/api-keys")).json()]
    assert (await stranger.get("/v2/sandboxes")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api-keys"),
        ("POST", "/api-keys"),
        ("PATCH", "/api-keys/key_1"),
        ("DELETE", "/api-keys/key_1"),
        ("POST", "/admin/teams/t/sandboxes/kill"),
        ("GET", "/admin/sandboxes/running-counts"),
    ],
)
async def test_a_key_is_not_enough_to_manage_keys_or_other_teams(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, method: str, path: str
) -> None:
    """A stolen key must not make others, and a wrong or empty token is none."""
    body = {"name": "more"} if method in {"POST", "PATCH"} else None
    assert_problem(await client.request(method, path, json=body), 401, "admin token")
    for token in ("", "wrong", admin.headers["X-Admin-Token"][:-1]):
        headers = {"X-Admin-Token": token}
        assert_problem(await client.request(method, path, json=body, headers=headers), 401, "admin token")


async def test_without_an_operators_token_nobody_is_the_operator(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/api-keys", headers={"X-Admin-Token": ""}), 401)


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, "a\nb", 7, None])
async def test_a_name_that_is_none_is_refused(admin: httpx.AsyncClient, name: object) -> None:
    assert_problem(await admin.post("/api-keys", json={"name": name}), 400)


@pytest.mark.parametrize("team", ["", "nobody"])
async def test_keys_of_no_team_are_not_found(admin: httpx.AsyncClient, team: str) -> None:
    admin.headers["X-Team-ID"] = team
    assert_problem(await admin.get("/api-keys"), 404, "no such team")
    assert_problem(await admin.post("/api-keys", json={"name": "x"}), 404, "no such team")


async def test_access_tokens_are_gone_for_good(client: httpx.AsyncClient) -> None:
    assert_problem(await client.post("/access-tokens", json={"name": "x"}), 410)


async def test_the_operator_ends_all_sandboxes_of_one_team(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, stranger: httpx.AsyncClient, control: ControlPlane
) -> None:
    mine, theirs = [await create(client) for _ in range(2)], await create(stranger)
    team, other = team_of(control, "default"), team_of(control, "others")
    assert (await admin.get("/admin/sandboxes/running-counts")).json() == {team: 2, other: 1}
    await client.post(f"/sandboxes/{mine[0]}/pause")
    assert (await admin.get("/admin/sandboxes/running-counts")).json() == {team: 1, other: 1}
    killed = (await admin.post(f"/admin/teams/{team}/sandboxes/kill")).json()
    assert fits("Killed", killed)
    assert killed == {"killedCount": 2, "failedCount": 0}
    assert_problem(await client.get(f"/sandboxes/{mine[0]}"), 404)
    assert (await stranger.get(f"/sandboxes/{theirs}")).status_code == 200
    assert (await admin.get("/admin/sandboxes/running-counts")).json() == {other: 1}


def test_the_token_is_kept_for_root_and_stays_the_same(control: ControlPlane) -> None:
    ensure_admin_token(control.config)
    path = control.config.state_dir / "admin-token"
    before = path.read_text()
    ensure_admin_token(control.config)
    assert path.read_text() == before
    assert path.stat().st_mode & 0o777 == 0o600
    assert before.strip() not in control.config.admin_token_hash.read_text()
