"""POST /v2/sandboxes and /sandboxes."""

import anyio
import httpx
import msgspec
import pytest
from tests.fakes.control_plane import (
    TEMPLATE_ID,
    assert_problem,
    client_of,
    create,
    make_key,
    write_template,
)
from tests.fakes.placement import FakePlacement

from cloche_server.api.control import ControlPlane
from cloche_wire.errors import ResourceExhausted, Unavailable

pytestmark = pytest.mark.anyio


async def test_the_answer_has_what_a_client_needs_to_connect(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "metadata": {}, "envVars": {}})
    assert answer.status_code == 201
    body = answer.json()
    order = placement.created[0]
    assert body == {
        "templateID": TEMPLATE_ID,
        "sandboxID": order.sandbox_id,
        "alias": "base",
        "clientID": "cloche",
        "envdVersion": "0.6.13",
        "envdAccessToken": order.access_token,
        "trafficAccessToken": None,
        "domain": "cloche.localhost:3000",
        "isolation": "fake",
    }
    assert order.access_token


async def test_the_node_is_asked_for_what_the_client_wants(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    await create(
        client,
        timeout=42,
        metadata={"user": "1"},
        envVars={"A": "b"},
        allow_internet_access=False,
        network={"allowPublicTraffic": False, "maskRequestHost": "localhost:${PORT}", "allowOut": []},
        autoPause=False,
        autoResume={"enabled": False},
        mcp=None,
        secure=True,
    )
    order = placement.created[0]
    assert (order.timeout_s, order.env, order.metadata) == (42, {"A": "b"}, {"user": "1"})
    assert not order.allow_internet
    assert order.traffic_token
    assert order.traffic_token != order.access_token
    assert order.mask_request_host == "localhost:${PORT}"
    assert (order.cpu_count, order.memory_mib) == (2, 2048)


@pytest.mark.parametrize(("path", "timeout_s"), [("/v2/sandboxes", 300), ("/sandboxes", 15)])
async def test_each_version_has_its_default_timeout(
    client: httpx.AsyncClient, placement: FakePlacement, path: str, timeout_s: int
) -> None:
    assert (await client.post(path, json={"templateID": "base"})).status_code == 201
    assert placement.created[0].timeout_s == timeout_s


@pytest.mark.parametrize(
    "reference",
    [
        "base",
        "BASE",
        "code-interpreter-v1",
        TEMPLATE_ID,
        "default/base",
        "base:default",
        "default/code-interpreter-v1:default",
    ],
)
async def test_a_template_goes_by_id_name_alias_namespace_and_tag(
    client: httpx.AsyncClient, reference: str
) -> None:
    await create(client, templateID=reference)


@pytest.mark.parametrize(
    "reference", ["nope", "other/base", "base:v2", "", "/", ":", "../base", "a'; --", "x" * 500]
)
async def test_an_unknown_template_is_404(client: httpx.AsyncClient, reference: str) -> None:
    assert_problem(await client.post("/v2/sandboxes", json={"templateID": reference}), 404, "not found")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"timeout": 86_401}, "Timeout cannot be greater than 24 hours"),
        ({"timeout": 0}, "Timeout"),
        ({"timeout": -1}, "Timeout"),
        ({"timeout": 2**63}, "Timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": ["a"]}, "metadata"),
        ({"envVars": {"A": None}}, "envVars"),
        ({"envVars": {"A=B": "c"}}, "envVars"),
        ({"envVars": {"": "c"}}, "envVars"),
        ({"envVars": {"A\0": "c"}}, "envVars"),
        ({"envVars": {"A": "c\0"}}, "envVars"),
        ({"templateID": 7}, "templateID"),
        ({"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}}, "autoResume"),
        ({"autoPauseMemory": False}, "autoPauseMemory"),
        ({"volumeMounts": [{"name": "a", "path": "a"}]}, "path of a volume"),
        ({"mcp": []}, "mcp"),
        ({"iam": {"tokens": {"aws": {"audience": "sts", "tokenType": "JWT-SVID"}}}}, "iam"),
        ({"network": {"maskRequestHost": "a b"}}, "network.maskRequestHost"),
        ({"network": {"maskRequestHost": "a\r\nb"}}, "network.maskRequestHost"),
        ({"network": "all"}, "network"),
    ],
)
async def test_a_bad_or_unsupported_option_is_400_and_named(
    client: httpx.AsyncClient, placement: FakePlacement, body: dict[str, object], part: str
) -> None:
    assert_problem(await client.post("/v2/sandboxes", json={"templateID": "base"} | body), 400, part)
    assert not placement.created


async def test_the_limit_of_sandboxes_is_429_with_the_numbers(client: httpx.AsyncClient) -> None:
    ids = [await create(client) for _ in range(5)]
    answer = await client.post("/v2/sandboxes", json={"templateID": "base"})
    assert_problem(answer, 429, "current 5, maximum 5")
    assert answer.headers["should-retry"] == "false"
    await client.delete(f"/sandboxes/{ids[0]}")
    await create(client)


async def test_a_node_that_is_away_is_503_and_leaves_nothing(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    placement.fails = Unavailable("node.sock does not answer")
    answer = await client.post("/v2/sandboxes", json={"templateID": "base"})
    assert_problem(answer, 503, "does not answer")
    assert answer.headers["should-retry"] == "false"
    assert not await control.store.liveness.alive()
    assert (await client.get("/v2/sandboxes")).json() == []


async def test_a_sandbox_whose_answer_was_lost_is_killed(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    placement.fails_after_create = Unavailable("node.sock closed the connection")
    assert_problem(await client.post("/v2/sandboxes", json={"templateID": "base"}), 503)
    assert not placement.alive
    assert placement.killed == [(placement.created[0].sandbox_id, "failed")]
    assert not await control.store.liveness.alive()


async def test_an_error_of_the_node_reaches_the_client_as_its_own_status(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    placement.fails = ResourceExhausted("no slot is free")
    assert_problem(await client.post("/v2/sandboxes", json={"templateID": "base"}), 429, "no slot")


async def test_a_sandbox_that_dies_while_it_is_made_is_an_error(
    client: httpx.AsyncClient, placement: FakePlacement, control: ControlPlane
) -> None:
    placement.gate = anyio.Event()
    answers: list[httpx.Response] = []

    async def ask() -> None:
        answers.append(await client.post("/v2/sandboxes", json={"templateID": "base"}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await placement.asked.wait()
        made = placement.created[0].sandbox_id
        await control.store.liveness.end([made], "exited", control.clock.now())
        placement.gate.set()
    assert_problem(answers[0], 503, "ended")
    assert not placement.alive


# --- isolation --------------------


async def test_the_isolation_that_is_asked_for_is_ordered(
    client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    await create(client)
    await create(client, isolation="gvisor")
    await create(client, isolation=None)
    assert [order.isolation for order in placement.created] == ["fake", "gvisor", "fake"]


async def test_a_weaker_or_unknown_isolation_is_refused_before_a_node_is_asked(
    control: ControlPlane, placement: FakePlacement
) -> None:
    strict = control._replace(config=msgspec.structs.replace(control.config, isolation="gvisor"))
    async with client_of(strict, make_key(control, "default")) as client:
        for isolation, status in (("container", 403), ("microvm", 400), ("", 201), ("gvisor", 201)):
            body = {"templateID": "base", "isolation": isolation}
            answer = await client.post("/v2/sandboxes", json=body)
            assert answer.status_code == status, answer.text
        assert (await client.get("/templates")).json()[0]["isolation"] == "gvisor"
    assert [order.isolation for order in placement.created] == ["gvisor", "gvisor"]


async def test_the_operator_s_list_permits_a_weaker_one(
    control: ControlPlane, placement: FakePlacement
) -> None:
    config = msgspec.structs.replace(control.config, isolation="gvisor", allow_isolation=("container",))
    async with client_of(control._replace(config=config), make_key(control, "default")) as client:
        await create(client, isolation="container")
    assert placement.created[0].isolation == "container"


async def test_a_template_s_isolation_is_shown_and_taken(
    control: ControlPlane, client: httpx.AsyncClient, placement: FakePlacement
) -> None:
    write_template(control.config, isolation="gvisor")
    await control.templates.scan()
    assert (await client.get("/templates/base")).json()["isolation"] == "gvisor"
    await create(client)
    assert placement.created[0].isolation == "gvisor"
    answer = await client.post("/v2/sandboxes", json={"templateID": "base", "isolation": "container"})
    assert_problem(answer, 403, "weaker than 'gvisor'")
