"""Templates: found on disk, asked for by name."""

import shutil

import httpx
import pytest
from tests.fakes.control_plane import TEMPLATE_ID, assert_problem, create, write_template

from cloche_server.api.control import ControlPlane
from cloche_server.config import Config
from cloche_server.store.templates import Template, Templates

pytestmark = pytest.mark.anyio


async def test_an_alias_leads_to_its_template(client: httpx.AsyncClient) -> None:
    for alias in ("base", "code-interpreter-v1", "default%2Fbase%3Adefault"):
        answer = await client.get(f"/templates/aliases/{alias}")
        assert (answer.status_code, answer.json()) == (200, {"templateID": TEMPLATE_ID, "public": True})
    assert_problem(await client.get("/templates/aliases/nope"), 404)


async def test_listings_have_every_field_clients_require(
    client: httpx.AsyncClient, control: ControlPlane
) -> None:
    await control.templates.scan()
    await create(client)
    for path in ("/templates", "/v2/templates", "/default-templates", "/templates?teamID=x"):
        (template,) = (await client.get(path)).json()
        assert template["templateID"] == TEMPLATE_ID
        assert template["names"] == template["aliases"] == ["code-interpreter-v1", "base"]
        assert template["createdBy"] is None
        assert (template["spawnCount"], template["buildStatus"]) == (1, "ready")
        assert template["lastSpawnedAt"] == "2026-01-01T00:00:00Z"
    (build,) = (await client.get("/templates/base")).json()["builds"]
    assert build["buildID"] == "6f1c0000-0000-4000-8000-000000000001"


async def test_pages_of_templates_lead_to_each_other(
    client: httpx.AsyncClient, control: ControlPlane, config: Config
) -> None:
    write_template(config, template_id="b" * 20, build_id="2", name="other", aliases=[])
    await control.templates.scan()
    first = await client.get("/v2/templates?limit=1")
    second = await client.get(
        "/v2/templates", params={"limit": "1", "nextToken": first.headers["x-next-token"]}
    )
    assert [answer.json()[0]["names"][0] for answer in (first, second)] == ["other", "code-interpreter-v1"]
    assert "x-next-token" not in second.headers
    assert_problem(await client.get("/v2/templates?nextToken=%ff%ff"), 400)


async def test_a_template_that_is_finished_later_is_found(
    client: httpx.AsyncClient, control: ControlPlane, config: Config
) -> None:
    await control.templates.scan()
    write_template(config, template_id="b" * 20, build_id="2", name="late", aliases=[])
    await create(client, templateID="late")


async def test_one_that_another_request_has_found_meanwhile_is_found(
    client: httpx.AsyncClient, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two first requests at once: one looks in vain, the other has all read before it looks again."""
    look = Templates.find

    async def find(self: Templates, team_id: str, name: str) -> Template | None:
        monkeypatch.undo()
        found = await look(self, team_id, name)
        await control.templates.scan()
        return found

    monkeypatch.setattr(Templates, "find", find)
    await create(client)


async def test_the_newest_build_of_a_template_is_used(
    client: httpx.AsyncClient, config: Config, control: ControlPlane
) -> None:
    write_template(config, build_id="2", created_at="2026-02-01T00:00:00Z", memory_mib=512)
    made = await create(client)
    assert (await client.get(f"/sandboxes/{made}")).json()["memoryMB"] == 512


async def test_a_template_that_is_gone_from_disk_is_not_offered(
    client: httpx.AsyncClient, control: ControlPlane, config: Config
) -> None:
    await control.templates.scan()
    shutil.rmtree(config.templates_dir)
    await control.templates.scan()
    assert_problem(await client.post("/v2/sandboxes", json={"templateID": "base"}), 404)


async def test_what_is_no_manifest_is_left_out(
    client: httpx.AsyncClient, control: ControlPlane, config: Config
) -> None:
    for name, text in (("half", "{"), ("wrong", '{"template_id": 5}'), (".building", "{}")):
        (config.templates_dir / name).mkdir()
        (config.templates_dir / name / "manifest.json").write_text(text)
    await control.templates.scan()
    await create(client)


@pytest.mark.parametrize("name", ["polyglot", "polyglot:default"])
async def test_a_template_of_ours_that_nobody_has_built_is_refused_with_the_command(
    client: httpx.AsyncClient, name: str
) -> None:
    answer = await client.post("/v2/sandboxes", json={"templateID": name})
    assert_problem(answer, 404)
    assert "cloche template build polyglot" in answer.json()["message"]
