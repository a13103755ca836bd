"""An api over a fresh database and a placement without a node: what its tests have in common."""

import json
from datetime import UTC, datetime

import httpx
import msgspec

from cloche_server.api.app import app_of
from cloche_server.api.control import ControlPlane
from cloche_server.config import Config

TEMPLATE_ID = "codeinterpreter00001"


def write_template(config: Config, **changes: object) -> None:
    manifest = {
        "template_id": TEMPLATE_ID,
        "build_id": "6f1c0000-0000-4000-8000-000000000001",
        "name": "code-interpreter-v1",
        "aliases": ["base"],
        "cpu_count": 2,
        "memory_mib": 2048,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        "recipe_hash": "00",
    } | changes
    folder = config.templates_dir / str(manifest["build_id"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def make_key(control: ControlPlane, team: str) -> str:
    _, key = control.store.keys.create("test", team, control.clock.now())
    return key


def client_of(control: ControlPlane, key: str | None) -> httpx.AsyncClient:
    headers = {} if key is None else {"X-API-KEY": key}
    transport = httpx.ASGITransport(app=app_of(control))
    return httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=headers)


class Created(msgspec.Struct, rename={"sandbox_id": "sandboxID"}):
    sandbox_id: str


async def create(client: httpx.AsyncClient, **body: object) -> str:
    """Make a sandbox and return its id."""
    answer = await client.post("/v2/sandboxes", json={"templateID": "base"} | body)
    assert answer.status_code == 201, answer.text
    return msgspec.json.decode(answer.content, type=Created).sandbox_id


def assert_problem(answer: httpx.Response, status: int, part: str = "") -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == status
    assert part in body["message"]
