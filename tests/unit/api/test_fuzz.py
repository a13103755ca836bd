"""Random requests to every route of the control plane: refused in words, none an accident."""

import asyncio
import json
import re
from typing import Any, get_type_hints
from urllib.parse import quote, urlencode

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.control_plane import client_of, make_key

from cloche_server.api import shapes
from cloche_server.api.app import routes_of
from cloche_server.api.control import ControlPlane

pytestmark = pytest.mark.fuzz

ALLOWED = {*range(200, 300), *range(400, 500), 501}
"""501 is for what this version does not serve; the node is a fake, so 500, 502 and 503 would be accidents."""


def _names() -> list[str]:
    """Names that the interface gives to fields of bodies and queries, all of them."""
    found: set[str] = set()
    for value in vars(shapes).values():
        if isinstance(value, type) and issubclass(value, msgspec.Struct):
            get_type_hints(value)
            found |= {field.encode_name for field in msgspec.structs.fields(value)}
    return sorted(found)


TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["base", "default", "0.0.0.0/0", "::/0", "a.example", "*.example", "${PORT}", "x:99999", "\0", "-1"]
    ),
    st.sampled_from(
        ["2026-01-01T00:00:00Z", "9" * 400, "' OR 1=1 --", "%25%00", "../..", "\r\nX: y", "é" * 200]
    ),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    TEXTS,
    st.integers(-5, 400),
    st.sampled_from([2**31, 2**63, 2**64, -(2**70), 0.5]),
)
BODIES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(_names()), TEXTS), inner, max_size=5),
    ),
    max_leaves=6,
)
LIKELY = st.dictionaries(st.sampled_from(_names()), BODIES, max_size=5).map(
    lambda fields: {"templateID": "base"} | fields
)


class Asked(msgspec.Struct):
    """One request, with a fake id in it where the route has one."""

    method: str
    path: str
    body: bytes


def _requests(control: ControlPlane) -> st.SearchStrategy[Asked]:
    routes = sorted({(route.method, route.pattern) for route in routes_of(control)})
    segments = st.one_of(st.sampled_from(["base", "i" + "0" * 20, "0" * 64, "ns%2Fname%3Atag", "%ff", "%00"]),
                         TEXTS.filter(bool).map(lambda text: quote(text, safe="")))  # fmt: skip
    queries = st.dictionaries(st.sampled_from(_names()), TEXTS, max_size=3).map(
        lambda fields: "?" + urlencode(fields, errors="replace") if fields else ""
    )

    @st.composite
    def one(draw: st.DrawFn) -> Asked:
        method, pattern = draw(st.sampled_from(routes))
        path = re.sub(r"\{\w+\}", lambda _: draw(segments), pattern) + draw(queries)
        content: Any = draw(st.one_of(BODIES, LIKELY))
        body = draw(st.one_of(st.just(json.dumps(content).encode()), st.binary(max_size=20), st.just(b"")))
        return Asked(method, path, body)

    return one()


@given(data=st.data())
@settings(
    max_examples=settings.default.max_examples // 5,
    suppress_health_check=list(HealthCheck),
)
def test_requests_of_any_form_are_answered(control: ControlPlane, data: st.DataObject) -> None:
    """As a team with a key, so that nothing is refused before it is looked at."""
    key = make_key(control, "default")
    asked = data.draw(st.lists(_requests(control), min_size=3, max_size=10))
    for request, answer in zip(asked, asyncio.run(_ask(control, key, asked)), strict=True):
        assert answer.status_code in ALLOWED, (request, answer.text)
        if answer.status_code >= 400:
            assert answer.json()["code"] == answer.status_code, request
            assert answer.json()["message"], request


async def _ask(control: ControlPlane, key: str, asked: list[Asked]) -> list[httpx.Response]:
    async with client_of(control, key) as client:
        return [await client.request(one.method, one.path, content=one.body) for one in asked]
