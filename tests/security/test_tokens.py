"""Boundary: tokens. A sandbox opens to its own token only, and a signed URL opens what it was signed for."""

import base64
import hashlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import httpx
import pytest
from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import Server

pytestmark = NEEDS_A_SERVER


class Made(NamedTuple):
    """Two sandboxes of one team: ids and tokens."""

    id: str
    token: str
    foreign_token: str


@pytest.fixture(scope="module")
def made(server: Server) -> Iterator[Made]:
    a, b = (
        server.request("POST", "/v2/sandboxes", json={"templateID": "base", "timeout": 300}).json()
        for _ in "ab"
    )
    own = Made(a["sandboxID"], a["envdAccessToken"], b["envdAccessToken"])
    write = {"files": {"file": ("hello.txt", b"hello")}, "params": {"path": "/home/user/hello.txt"}}
    assert call(server, own, "files", own.token, method="POST", **write).status_code == 200
    yield own
    for item in (a, b):
        server.request("DELETE", f"/sandboxes/{item['sandboxID']}")


ROUTES: dict[str, tuple[str, str, int, dict[str, object]]] = {
    "files": ("GET", "/files", 49983, {"params": {"path": "/home/user/hello.txt"}}),
    "process": ("POST", "/process.Process/List", 49983, {"json": {}}),
    "filesystem": ("POST", "/filesystem.Filesystem/Stat", 49983, {"json": {"path": "/home/user"}}),
    "execute": ("POST", "/execute", 49999, {"json": {"code": "1"}}),
    "metrics": ("GET", "/metrics", 49983, {}),
    "envs": ("GET", "/envs", 49983, {}),
}


def call(server: Server, made: Made, route: str, token: str | None, **changes: object) -> httpx.Response:
    method, path, port, options = ROUTES[route]
    headers = {"E2b-Sandbox-Id": made.id, "E2b-Sandbox-Port": str(port)}
    if token is not None:
        headers["X-Access-Token"] = token
    chosen = str(changes.pop("method", method))
    return server.request(chosen, path, key="", headers=headers, **(options | changes))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["none", "foreign", "empty", "truncated", "other case", "longer"])
def test_a_wrong_token_opens_nothing(server: Server, made: Made, route: str, kind: str) -> None:
    """Battery 63: 401 on every door of the sandbox, for every wrong token."""
    wrong = {
        "none": None, "foreign": made.foreign_token, "empty": "", "truncated": made.token[:-1],
        "other case": made.token.upper(), "longer": made.token + "0",
    }[kind]  # fmt: skip
    assert call(server, made, route, wrong).status_code == 401
    assert call(server, made, route, made.token).status_code == 200  # twin


def test_health_is_open_to_everybody(server: Server, made: Made) -> None:
    """Battery 63: the only exemption."""
    headers = {"E2b-Sandbox-Id": made.id, "E2b-Sandbox-Port": "49983"}
    assert server.request("GET", "/health", key="", headers=headers).status_code == 204


def signature(path: str, act: str, user: str, token: str, expiry: int | None = None) -> str:
    """The public recipe, written down here once more so that the server's own code is not its own judge."""
    raw = f"{path}:{act}:{user}:{token}" + (f":{expiry}" if expiry is not None else "")
    return "v1_" + base64.b64encode(hashlib.sha256(raw.encode()).digest()).decode().rstrip("=")


def signed(server: Server, **query: object) -> httpx.Response:
    return server.request("GET", "/files", key="", params=query)


PATH = "/home/user/hello.txt"


def test_a_signed_url_opens_its_file_without_a_header(server: Server, made: Made) -> None:
    """Battery 64: valid signatures, with and without an end, open the file."""
    soon = int(time.time()) + 60
    assert signed(server, path=PATH, signature=signature(PATH, "read", "", made.token)).text == "hello"
    expiring = signature(PATH, "read", "", made.token, soon)
    assert signed(server, path=PATH, signature=expiring, signature_expiration=soon).text == "hello"


@pytest.mark.parametrize(
    "change",
    [
        "flipped",
        "for writing",
        "other path",
        "other user",
        "expired",
        "expiry removed",
        "expiry changed",
        "foreign",
    ],
)
def test_a_changed_signed_url_opens_nothing(server: Server, made: Made, change: str) -> None:
    """Battery 64: any change of what was signed is 401."""
    soon, past = int(time.time()) + 60, int(time.time()) - 1
    good, until_soon, until_past = (
        signature(PATH, "read", "", made.token, end) for end in (None, soon, past)
    )
    queries: dict[str, dict[str, object]] = {
        "flipped": {"path": PATH, "signature": good[:-1] + ("A" if good[-1] != "A" else "B")},
        "for writing": {"path": PATH, "signature": signature(PATH, "write", "", made.token)},
        "other path": {"path": "/etc/passwd", "signature": good},
        "other user": {"path": PATH, "signature": good, "username": "root"},
        "expired": {"path": PATH, "signature": until_past, "signature_expiration": past},
        "expiry removed": {"path": PATH, "signature": until_soon},
        "expiry changed": {"path": PATH, "signature": until_soon, "signature_expiration": soon + 1},
        "foreign": {"path": PATH, "signature": signature(PATH, "read", "", "0" * 40)},
    }  # fmt: skip
    assert signed(server, **queries[change]).status_code == 401


def test_a_wrong_header_spoils_a_good_signature(server: Server, made: Made) -> None:
    """Battery 64: the header, where there is one, decides."""
    good = {"path": PATH, "signature": signature(PATH, "read", "", made.token)}
    target = {"E2b-Sandbox-Id": made.id, "E2b-Sandbox-Port": "49983", "X-Access-Token": made.foreign_token}
    assert server.request("GET", "/files", key="", headers=target, params=good).status_code == 401
