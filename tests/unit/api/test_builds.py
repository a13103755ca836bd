"""Building templates over REST, in the order in which both official builders ask."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import assert_problem, client_of, create, make_key, write_template
from tests.fakes.placement import FakePlacement
from tests.fakes.workshop import FakeWorkshop
from tests.support.openapi import load, misfits
from tests.support.source import ROOT
from tests.support.waiting import until_true

from cloche_server.api import build_tidying
from cloche_server.api.control import ControlPlane
from cloche_server.config import Builds, Config
from cloche_server.ids import BuildId
from cloche_server.store.store import Store
from cloche_server.templates.workshop import Finished, OnLine
from cloche_wire.errors import InvalidArgument

pytestmark = pytest.mark.anyio

HASH = "a" * 64
SPEC = load(ROOT / "specs" / "control_plane.yaml")


@pytest.fixture
async def builder(control: ControlPlane, client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an api in which builds run."""
    async with control.builds.serving():
        yield client


async def request(client: httpx.AsyncClient, name: str = "mine", **more: object) -> tuple[str, str]:
    answer = await client.post("/v3/templates", json={"name": name} | more)
    assert answer.status_code == 202, answer.text
    return answer.json()["templateID"], answer.json()["buildID"]


async def start(client: httpx.AsyncClient, ids: tuple[str, str], *steps: list[str], **more: object) -> None:
    body = {"fromImage": "e2bdev/base", "steps": [{"type": kind, "args": args} for kind, *args in steps]}
    answer = await client.post(f"/v2/templates/{ids[0]}/builds/{ids[1]}", json=body | more)
    assert answer.status_code == 202, answer.text


async def status(client: httpx.AsyncClient, ids: tuple[str, str], offset: int = 0) -> dict[str, Any]:
    path = f"/templates/{ids[0]}/builds/{ids[1]}/status"
    answer = await client.get(path, params={"logsOffset": offset})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ended(client: httpx.AsyncClient, ids: tuple[str, str]) -> dict[str, Any]:
    """Poll until the build has ended, as clients do."""

    async def look() -> dict[str, Any] | None:
        found = await status(client, ids)
        return None if found["status"] in ("waiting", "building") else found

    found = await until_true(look, within_s=10, what="the end of a build")
    assert found
    return found


async def begun(workshop: FakeWorkshop) -> None:
    async def look() -> bool:
        return "slow" in workshop.commands

    await until_true(look, within_s=10, what="the step that waits")


async def build(client: httpx.AsyncClient, name: str = "mine", *steps: list[str]) -> tuple[str, str]:
    ids = await request(client, name)
    await start(client, ids, *steps)
    assert (await ended(client, ids))["status"] == "ready"
    return ids


async def test_a_template_is_built_and_sandboxes_are_made_of_it(
    builder: httpx.AsyncClient, workshop: FakeWorkshop
) -> None:
    answer = await builder.post("/v3/templates", json={"name": "Mine:v1", "tags": ["new"], "cpuCount": 4})
    body = answer.json()
    ids = body["templateID"], body["buildID"]
    assert (body["tags"], body["names"], body["public"]) == (["v1", "new"], ["mine"], False)
    assert (await status(builder, ids))["status"] == "waiting"
    link = (await builder.get(f"/templates/{ids[0]}/files/{HASH}")).json()
    assert link["present"] is False
    async with httpx.AsyncClient(transport=builder._transport) as plain:  # without a key
        assert (await plain.put(link["url"], content=b"an archive")).status_code == 200
    assert (await builder.get(f"/templates/{ids[0]}/files/{HASH}")).json()["present"] is True
    steps = [
        {"type": "COPY", "args": ["a", "b", "", ""], "filesHash": HASH, "forceUpload": True},
        {"type": "RUN", "args": ["make"]},
    ]
    more = {"steps": steps, "startCmd": "serve", "readyCmd": "true", "force": False}
    await start(builder, ids, **more)
    found = await ended(builder, ids)
    assert found["status"] == "ready"
    assert found["logs"] == []
    assert [entry["step"] for entry in found["logEntries"]] == ["base", "1", "2", "finalize", "finalize"]
    assert (await status(builder, ids, len(found["logEntries"])))["logEntries"] == []
    (made,) = workshop.published
    assert (made.template_id, made.build_id, made.start_cmd, made.cpu_count) == (*ids, "serve", 4)
    for reference in ("mine:v1", f"{ids[0]}:new", "default%2Fmine:v1".replace("%2F", "/")):
        sandbox = await create(builder, templateID=reference)
        shown = (await builder.get(f"/sandboxes/{sandbox}")).json()
        assert (shown["templateID"], shown["cpuCount"], shown["memoryMB"]) == (ids[0], 4, 1024)
    # No build has the tag that a bare name means.
    assert_problem(await builder.post("/v2/sandboxes", json={"templateID": "mine"}), 404, "default")


async def test_a_rebuild_keeps_the_id_and_old_sandboxes_their_build(
    builder: httpx.AsyncClient, control: ControlPlane, clock: FakeClock
) -> None:
    first = await build(builder, "mine", ["RUN", "one"])
    old = await create(builder, templateID="mine")
    clock.advance(1)
    second = await build(builder, "mine", ["RUN", "two"])
    assert first[0] == second[0]
    new = await create(builder, templateID="mine")
    (team, _) = control.store.keys.list()[0]
    builds = [await control.store.sandboxes.get(team.team_id, made) for made in (old, new)]
    assert [record and record.build_id for record in builds] == [first[1], second[1]]
    detail = (await builder.get("/templates/mine?limit=1")).json()
    assert (detail["buildCount"], detail["buildStatus"], detail["buildID"]) == (2, "ready", second[1])
    assert [shown["buildID"] for shown in detail["builds"]] == [second[1]]


async def test_a_build_s_isolation_is_that_of_its_tag_and_of_no_other(
    builder: httpx.AsyncClient, placement: FakePlacement
) -> None:
    """A rebuild that asks for another leaves what other tags lead to, and the template, as they are."""
    await build(builder, "mine")
    asked: dict[str, str] = {}
    for tag, isolation in (("strong", "gvisor"), ("plain", "")):
        ids = await request(builder, f"mine:{tag}")
        await start(builder, ids, isolation=isolation)
        assert (await ended(builder, ids))["status"] == "ready"
    for reference in ("mine", "mine:strong", "mine:plain"):
        await create(builder, templateID=reference)
        asked[reference] = placement.created[-1].isolation
    assert asked == {"mine": "fake", "mine:strong": "gvisor", "mine:plain": "fake"}
    assert (await builder.get("/templates/mine")).json()["isolation"] == "fake"
    tags = {"target": "mine:strong", "tags": ["default"]}
    assert (await builder.post("/templates/tags", json=tags)).status_code == 201
    await create(builder, templateID="mine")
    assert placement.created[-1].isolation == "gvisor"
    assert (await builder.get("/templates/mine")).json()["isolation"] == "gvisor"


async def test_a_list_says_how_many_builds_each_template_has_and_which_is_the_newest(
    builder: httpx.AsyncClient, clock: FakeClock
) -> None:
    """Each one's own, also where another has more."""
    made: dict[str, str] = {}
    for name, count in (("one", 1), ("many", 4)):
        for number in range(count):
            made[name] = (await build(builder, name, ["RUN", str(number)]))[1]
            clock.advance(1)
    shown = {one["names"][0]: one for one in (await builder.get("/templates")).json() if not one["isDefault"]}
    counted = {name: (one["buildCount"], one["buildID"]) for name, one in shown.items()}
    assert counted == {"one": (1, made["one"]), "many": (4, made["many"])}


async def test_until_it_is_ready_the_old_build_is_used(
    builder: httpx.AsyncClient, workshop: FakeWorkshop, control: ControlPlane
) -> None:
    first = await build(builder)
    workshop.fails["bad"] = 1
    second = await request(builder)
    await start(builder, second, ["RUN", "bad"])
    found = await ended(builder, second)
    assert found["status"] == "error"
    assert found["reason"]["step"] == "1"
    assert "exit status 1" in found["reason"]["message"]
    assert [entry["level"] for entry in found["reason"]["logEntries"]] == ["error"]
    assert (await builder.get("/templates/aliases/mine")).json()["templateID"] == first[0]
    sandbox = await create(builder, templateID="mine")
    (team, _) = control.store.keys.list()[0]
    record = await control.store.sandboxes.get(team.team_id, sandbox)
    assert record
    assert record.build_id == first[1]


@pytest.mark.parametrize(
    ("more", "step"),
    [
        ({"fromImage": "e2b.dev/this-image-does-not-exist"}, "base"),
        ({"fromImage": "", "fromTemplate": "this-template-does-not-exist"}, "base"),
        ({"startCmd": "bad"}, "finalize"),
    ],
)
async def test_what_fails_before_or_after_the_steps_says_so(
    builder: httpx.AsyncClient, workshop: FakeWorkshop, more: dict[str, object], step: str
) -> None:
    workshop.fails_publish = InvalidArgument("the start command has ended: exit status 1")
    ids = await request(builder)
    await start(builder, ids, ["RUN", "true"], **more)
    found = await ended(builder, ids)
    assert (found["status"], found["reason"]["step"]) == ("error", step)
    assert_problem(await builder.post("/v2/sandboxes", json={"templateID": "mine"}), 404)


async def test_two_run_at_once_and_the_others_wait_for_their_turn(
    builder: httpx.AsyncClient, workshop: FakeWorkshop
) -> None:
    workshop.gate, workshop.waits = anyio.Event(), {"slow"}
    ids = [await request(builder, f"mine{number}") for number in range(3)]
    for one in ids:
        await start(builder, one, ["RUN", "slow"])

    async def two_run() -> bool:
        return workshop.commands.count("slow") == 2 and bool((await status(builder, ids[2]))["logEntries"])

    await until_true(two_run, within_s=10, what="two builds that run")
    waiting = await status(builder, ids[2])
    assert waiting["status"] == "building"
    assert "waiting for other builds" in waiting["logEntries"][0]["message"]
    assert workshop.open == 2
    workshop.gate.set()
    assert [(await ended(builder, one))["status"] for one in ids] == ["ready"] * 3


async def test_a_build_that_takes_too_long_ends_and_names_its_step(
    config: Config, store: Store, placement: FakePlacement, clock: FakeClock, workshop: FakeWorkshop
) -> None:
    workshop.gate, workshop.waits = anyio.Event(), {"slow"}
    short = msgspec.structs.replace(config, builds=Builds(timeout_s=1))
    control = ControlPlane.assemble(short, store, placement, clock, workshop)
    async with control.builds.serving(), client_of(control, make_key(control, "default")) as client:
        ids = await request(client)
        await start(client, ids, ["RUN", "quick"], ["RUN", "slow"])
        found = await ended(client, ids)
    assert found["status"] == "error"
    assert found["reason"]["message"] == "the build took longer than 1 s"
    assert found["reason"]["step"] == "2"
    assert (workshop.open, workshop.published) == (0, [])


async def test_a_newer_build_of_the_same_tag_stops_the_older_one(
    builder: httpx.AsyncClient, workshop: FakeWorkshop
) -> None:
    workshop.gate, workshop.waits = anyio.Event(), {"slow"}
    old, other, new = await request(builder), await request(builder, "mine:other"), await request(builder)
    await start(builder, old, ["RUN", "slow"])
    await start(builder, other, ["RUN", "slow"])
    await start(builder, new, ["RUN", "quick"])
    assert (await ended(builder, new))["status"] == "ready"
    stopped = await ended(builder, old)
    assert "newer build" in stopped["reason"]["message"]
    assert (await status(builder, other))["status"] == "building"
    workshop.gate.set()
    assert (await ended(builder, other))["status"] == "ready"
    assert workshop.open == 0


async def test_deleting_a_template_stops_its_build_and_takes_away_what_is_left(
    builder: httpx.AsyncClient, workshop: FakeWorkshop
) -> None:
    first = await build(builder)
    workshop.gate, workshop.waits = anyio.Event(), {"slow"}
    second = await request(builder, "mine:next")
    await start(builder, second, ["RUN", "slow"])
    await begun(workshop)
    assert (await builder.delete("/templates/mine")).status_code == 204
    assert workshop.removed == [first[1]]

    async def is_closed() -> bool:
        return workshop.open == 0

    await until_true(is_closed, within_s=10, what="the end of its sandbox")
    assert_problem(await builder.get("/templates/mine"), 404)
    assert_problem(await builder.delete("/templates/mine"), 404)
    path = f"/templates/{second[0]}/builds/{second[1]}/status"
    assert_problem(await builder.get(path), 400, "not found")


async def test_a_template_with_sandboxes_is_not_deleted(builder: httpx.AsyncClient) -> None:
    await build(builder)
    sandbox = await create(builder, templateID="mine")
    assert_problem(await builder.delete("/templates/mine"), 400, "sandboxes")
    await builder.delete(f"/sandboxes/{sandbox}")
    assert (await builder.delete("/templates/mine")).status_code == 204


async def test_templates_are_their_teams_until_they_are_public(
    builder: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    ids = await build(builder)
    assert_problem(await stranger.get("/templates/mine"), 404)
    for reference in ("mine", ids[0], "default%2Fmine"):
        assert_problem(await stranger.get(f"/templates/aliases/{reference}"), 404)
    changed = await builder.patch("/v2/templates/mine", json={"public": True})
    assert (changed.status_code, changed.json()) == (200, {"names": ["default/mine"]})
    await create(stranger, templateID="default/mine")
    await create(stranger, templateID=ids[0])
    assert_problem(await stranger.post("/v2/sandboxes", json={"templateID": "mine"}), 404)
    for refused in (
        await stranger.patch(f"/v2/templates/{ids[0]}", json={"public": False}),
        await stranger.delete(f"/templates/{ids[0]}"),
        await stranger.get(f"/templates/{ids[0]}/files/{HASH}"),
        await stranger.delete("/templates/base"),
    ):
        assert_problem(refused, 403)
    assert_problem(await stranger.get(f"/templates/{ids[0]}/builds/{ids[1]}/status"), 400)
    # Each team may give its own template the same name.
    theirs = await request(stranger)
    assert theirs[0] != ids[0]


async def test_tags_move_and_go(builder: httpx.AsyncClient) -> None:
    first, second = await build(builder, "mine:v1"), await build(builder, "mine:v2")
    body = {"target": "mine:v1", "tags": ["stable", "mine:latest"]}
    answer = await builder.post("/templates/tags", json=body)
    assert (answer.status_code, answer.json()) == (201, {"tags": ["stable", "latest"], "buildID": first[1]})
    await builder.post("/templates/tags", json={"target": "mine:v2", "tags": ["stable"]})
    tags = {tag["tag"]: tag["buildID"] for tag in (await builder.get("/templates/mine/tags")).json()}
    assert tags == {"v1": first[1], "v2": second[1], "stable": second[1], "latest": first[1]}
    body = {"name": "mine", "tags": ["stable"]}
    assert (await builder.request("DELETE", "/templates/tags", json=body)).status_code == 204
    assert_problem(await builder.post("/v2/sandboxes", json={"templateID": "mine:stable"}), 404)
    await create(builder, templateID="mine:latest")
    for bad, code in (
        ({"target": "mine:v9", "tags": ["a"]}, 404),
        ({"target": "none:v1", "tags": ["a"]}, 404),
        ({"target": "mine:v1", "tags": []}, 400),
        ({"target": "mine:v1", "tags": [":invalid-tag"]}, 400),
        ({"target": "mine:v1", "tags": ["mine:"]}, 400),
        ({"target": "mine:v1", "tags": [first[1]]}, 400),
    ):
        assert_problem(await builder.post("/templates/tags", json=bad), code)
    for bad in ({"name": "mine", "tags": ["default"]}, {"name": "mine:v1", "tags": ["v1"]}):
        assert_problem(await builder.request("DELETE", "/templates/tags", json=bad), 400)


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "x" * 129},
        {"name": "others/mine"},
        {"name": "mine:"},
        {"name": "mine", "tags": ["UPPER case"]},
        {"name": "mine", "cpuCount": 0},
        {"name": "mine", "memoryMB": 64},
        {"name": 5},
    ],
)
async def test_what_no_template_could_be_is_refused(
    client: httpx.AsyncClient, body: dict[str, object]
) -> None:
    assert_problem(await client.post("/v3/templates", json=body), 400)


async def test_a_build_starts_once_and_only_with_its_files(builder: httpx.AsyncClient) -> None:
    ids = await request(builder)
    path = f"/v2/templates/{ids[0]}/builds/{ids[1]}"
    copy = {"type": "COPY", "args": ["a", "b"], "filesHash": HASH}
    assert_problem(await builder.post(path, json={"steps": [copy]}), 409, "step 1")
    assert_problem(await builder.post(path, json={"steps": [{"type": "VOLUME"}]}), 400, "step 1")
    assert (await builder.post(path, json={})).status_code == 202
    assert_problem(await builder.post(path, json={}), 400, "not in waiting state")
    await ended(builder, ids)


async def test_a_link_opens_one_archive_for_an_hour(
    client: httpx.AsyncClient, nobody: httpx.AsyncClient, clock: FakeClock, control: ControlPlane
) -> None:
    ids = await request(client)
    assert_problem(await client.get(f"/templates/{ids[0]}/files/nonsense"), 400)
    url = (await client.get(f"/templates/{ids[0]}/files/{HASH}")).json()["url"]
    for wrong in (url[:-1] + ("A" if url[-1] != "A" else "B"), url.rpartition("/")[0] + "/x"):
        assert_problem(await nobody.put(wrong, content=b"x"), 403)
    folder = control.config.uploads_dir

    async def half() -> AsyncIterator[bytes]:
        yield b"x"

    broken = await nobody.put(url, content=half(), headers={"content-length": "5"})
    assert broken.status_code == 400
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert (await nobody.put(url, content=b"first")).status_code == 200
    assert (await nobody.put(url, content=b"second")).status_code == 200
    (kept,) = [path for path in folder.rglob("*") if path.is_file()]
    assert (kept.name, kept.read_bytes(), kept.parent.stat().st_mode & 0o777) == (HASH, b"second", 0o700)
    clock.advance(3601)
    assert_problem(await nobody.put(url, content=b"late"), 403)


@asynccontextmanager
async def served_again(
    config: Config, store: Store, clock: FakeClock, control: ControlPlane
) -> AsyncIterator[httpx.AsyncClient]:
    """Another api over the same database, as after a crash of the first one."""
    again = ControlPlane.assemble(config, store, control.placement, clock, FakeWorkshop())
    async with again.builds.serving(), client_of(again, make_key(again, "default")) as made:
        yield made


async def test_after_a_crash_a_build_has_failed_and_its_log_is_there(
    config: Config,
    store: Store,
    clock: FakeClock,
    control: ControlPlane,
    client: httpx.AsyncClient,
    workshop: FakeWorkshop,
) -> None:
    workshop.gate, workshop.waits = anyio.Event(), {"slow"}
    workshop.prints["slow"] = ["half done"]
    async with control.builds.serving():
        ids, waiting = await request(client), await request(client, "other")
        await start(client, ids, ["RUN", "slow"])

        async def has_said_so() -> bool:
            return len((await status(client, ids))["logEntries"]) == 3

        await until_true(has_said_so, within_s=10, what="what the step writes")
    async with served_again(config, store, clock, control) as later:
        found = await status(later, ids)
        assert found["status"] == "error"
        assert found["logEntries"][2]["message"] == "half done"
        assert "step" not in found["reason"]
        # One that was only asked for can still be started.
        await start(later, waiting)
        assert (await ended(later, waiting))["status"] == "ready"
        # What had run does not run again.
        again = await request(later)
        await start(later, again)
        assert (await ended(later, again))["status"] == "ready"


async def test_long_logs_come_in_order_page_by_page(
    builder: httpx.AsyncClient, workshop: FakeWorkshop
) -> None:
    workshop.prints["loud"] = [f"line {number}" for number in range(1000)]
    ids = await build(builder, "mine", ["RUN", "loud"])
    seen: list[str] = []
    while page := (await status(builder, ids, len(seen)))["logEntries"]:
        assert len(page) <= 100
        seen += [entry["message"] for entry in page]
    assert [line for line in seen if line.startswith("line ")] == workshop.prints["loud"]
    path = f"/templates/{ids[0]}/builds/{ids[1]}/logs"
    last = (await builder.get(path, params={"direction": "backward", "limit": 1})).json()["logs"]
    assert last[0]["message"] == seen[-1]
    assert_problem(await builder.get(f"{path.removesuffix('logs')}status?logsOffset=-1"), 400)


async def test_what_a_dead_api_has_published_and_nobody_asks_for_goes(
    builder: httpx.AsyncClient,
    control: ControlPlane,
    workshop: FakeWorkshop,
    config: Config,
) -> None:
    kept = await build(builder)
    for number, build_id in enumerate((kept[1], "6f1c0000-0000-4000-8000-00000000dead")):
        write_template(config, build_id=build_id, team_id="team", name=f"mine{number}")
    upload = config.uploads_dir / "team" / HASH
    upload.parent.mkdir(parents=True)
    upload.write_bytes(b"x")
    old = control.clock.now().timestamp() - 86_400 * (config.builds.keep_uploads_days + 1)
    os.utime(upload, (old, old))
    await build_tidying.tidy(control)
    assert workshop.removed == ["6f1c0000-0000-4000-8000-00000000dead"]
    assert not upload.exists()
    # What a team has built is no template of everyone, whatever lies on disk.
    await control.templates.scan()
    assert len((await builder.get("/default-templates")).json()) == 1


async def test_a_build_stopped_in_its_last_moment_is_not_published(
    builder: httpx.AsyncClient, control: ControlPlane, workshop: FakeWorkshop
) -> None:
    ids = await request(builder)
    (team, _) = control.store.keys.list()[0]

    async def fail_it(finished: Finished, on_line: OnLine) -> None:
        now = control.clock.now()
        await control.store.builds.fail(team.team_id, BuildId(finished.build_id), "stopped", None, now)

    workshop.publish = fail_it  # type: ignore[method-assign]
    await start(builder, ids)
    assert (await ended(builder, ids))["reason"]["message"] == "stopped"

    async def is_removed() -> bool:
        return workshop.removed == [ids[1]]

    await until_true(is_removed, within_s=10, what="the removal of what was published")


async def test_answers_about_builds_fit_the_text(builder: httpx.AsyncClient, workshop: FakeWorkshop) -> None:
    workshop.fails["bad"] = 1
    ids = await request(builder, "mine:v1")
    await start(builder, ids, ["RUN", "bad"])
    failed = await ended(builder, ids)
    assert fits("BuildStatus", failed)
    ready = await build(builder, "mine:v2")
    assert fits("BuildStatus", await status(builder, ready))
    logs = await builder.get(f"/templates/{ready[0]}/builds/{ready[1]}/logs")
    assert fits("BuildLogs", logs.json())
    assert fits("TemplateWithBuilds", (await builder.get("/templates/mine")).json())
    assert all(fits("TemplateTag", tag) for tag in (await builder.get("/templates/mine/tags")).json())
    body = {"target": "mine:v2", "tags": ["new"]}
    assert fits("AssignedTags", (await builder.post("/templates/tags", json=body)).json())
    assert fits("FilesLink", (await builder.get(f"/templates/{ready[0]}/files/{HASH}")).json())
    changed = await builder.patch("/v2/templates/mine", json={"public": True})
    assert fits("TemplateNames", changed.json())


def fits(schema: str, answer: object) -> bool:
    found = misfits(SPEC, {"$ref": f"#/components/schemas/{schema}"}, answer)
    assert found == []
    return True
