"""specs/control_plane.yaml says what is served, and answers are what it says."""

from typing import Any

import httpx
import pytest
from tests.fakes.control_plane import create
from tests.fakes.placement import FakePlacement
from tests.support.openapi import load, misfits, resolve
from tests.support.source import ROOT

from cloche_server.api.app import routes_of
from cloche_server.api.control import ControlPlane
from cloche_server.api.unserved import unserved_routes
from cloche_server.node.messages import LogEntry, MetricPoint

SPEC = load(ROOT / "specs" / "control_plane.yaml")


def operation(method: str, pattern: str) -> dict[str, Any]:
    return SPEC["paths"][pattern][method.lower()]


def test_the_text_names_exactly_the_routes_that_are_served(control: ControlPlane) -> None:
    refused = {(route.method, route.pattern) for route in unserved_routes()}
    served = {(route.method, route.pattern) for route in routes_of(control)} - refused
    written = {(method.upper(), path) for path, methods in SPEC["paths"].items() for method in methods}
    assert written == served


def test_the_text_names_429_wherever_a_key_is_asked_for(control: ControlPlane) -> None:
    refused = {(route.method, route.pattern) for route in unserved_routes()}
    for route in routes_of(control):
        if (route.method, route.pattern) not in refused:
            assert ("429" in operation(route.method, route.pattern)["responses"]) != route.public


CALLS: list[tuple[str, str, dict[str, object] | None]] = [
    ("GET", "/health", None),
    ("GET", "/v2/sandboxes", None),
    ("GET", "/sandboxes", None),
    ("POST", "/v2/sandboxes", {"templateID": "base", "network": {"allowPublicTraffic": False}}),
    ("POST", "/sandboxes", {"templateID": "base"}),
    ("POST", "/v2/sandboxes", {"templateID": "nope"}),
    ("GET", "/sandboxes/{id}", None),
    ("POST", "/sandboxes/{id}/timeout", {"timeout": 5}),
    ("POST", "/sandboxes/{id}/timeout", {"timeout": -1}),
    ("PUT", "/sandboxes/{id}/network", {"denyOut": ["8.8.8.8"]}),
    ("PUT", "/sandboxes/{id}/network", {"denyOut": ["nobody"]}),
    ("POST", "/sandboxes/{id}/refreshes", {}),
    ("POST", "/v2/sandboxes/{id}/connect", {}),
    ("POST", "/sandboxes/{id}/connect", {"timeout": 5}),
    ("POST", "/sandboxes/{id}/resume", {}),
    ("POST", "/sandboxes/{id}/pause", {}),
    ("POST", "/sandboxes/{id}/fork", {}),
    ("POST", "/sandboxes/{id}/snapshots", {}),
    ("GET", "/sandboxes/{id}/metrics", None),
    ("GET", "/sandboxes/metrics", None),
    ("GET", "/sandboxes/metrics?sandbox_ids={id}", None),
    ("GET", "/teams/{team}/metrics", None),
    ("GET", "/teams/{team}/metrics/max?metric=concurrent_sandboxes", None),
    ("GET", "/sandboxes/{id}/logs", None),
    ("GET", "/v2/sandboxes/{id}/logs", None),
    ("GET", "/events/sandboxes", None),
    ("GET", "/events/sandboxes/{id}", None),
    ("GET", "/snapshots", None),
    ("DELETE", "/sandboxes/{id}", None),
    ("DELETE", "/templates/{id}", None),
    ("DELETE", "/templates/nope", None),
    ("GET", "/volumes", None),
    ("POST", "/volumes", {"name": "data"}),
    ("POST", "/volumes", {"name": ""}),
    ("GET", "/volumes/{id}", None),
    ("DELETE", "/volumes/{id}", None),
    ("GET", "/templates", None),
    ("GET", "/default-templates", None),
    ("GET", "/v2/templates", None),
    ("GET", "/templates/{id}", None),
    ("GET", "/templates/aliases/{alias}", None),
    ("GET", "/templates/{id}/tags", None),
    ("PATCH", "/v2/templates/{id}", {"public": True}),
    ("POST", "/v3/templates", {"name": "mine"}),
    ("POST", "/v3/templates", {"name": "not a name"}),
    ("POST", "/templates/tags", {"target": "base:v1", "tags": ["a"]}),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "pattern", "body"), CALLS)
async def test_an_answer_fits_the_text(
    client: httpx.AsyncClient,
    control: ControlPlane,
    placement: FakePlacement,
    method: str,
    pattern: str,
    body: dict[str, object] | None,
) -> None:
    made = await create(client, metadata={"a": "b"})
    volume = (await client.post("/volumes", json={"name": "other"})).json()["volumeID"]
    ids = {"templates": "base", "volumes": volume}
    path = pattern.replace("{alias}", "base").replace("{id}", ids.get(pattern.split("/")[1], made))
    placement.points = [MetricPoint(int(control.clock.now().timestamp()), 1.0, 2, 3, 4)]
    placement.logged[made] = [LogEntry(1, "info", "process", "process started", {"pid": "7"})]
    team = control.store.keys.list()[0][0].team_id
    path = pattern.replace("{alias}", "base").replace("{team}", team)
    path = path.replace("{id}", "base" if "template" in pattern else made)
    answer = await client.request(method, path, json=body)
    responses = operation(method, pattern.partition("?")[0].replace("nope", "{id}"))["responses"]
    written = resolve(SPEC, responses[str(answer.status_code)])
    if "content" not in written:
        assert answer.content == b""
    else:
        schema = written["content"]["application/json"]["schema"]
        assert misfits(SPEC, schema, answer.json()) == []


def test_the_check_finds_what_is_missing_wrong_or_too_much() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    assert misfits(SPEC, schema, {"a": 1}) == []
    for wrong in ({}, {"a": True}, {"a": "1"}, {"a": 1, "b": 2}, [], None):
        assert misfits(SPEC, schema, wrong)
