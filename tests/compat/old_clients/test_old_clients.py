"""Official clients of earlier years still work: by the URLs of today, and by the domain alone over https."""

import json
import subprocess
from pathlib import Path

import pytest
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import Server

HERE = Path(__file__).parent
pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("node"), pytest.mark.timeout(300)]

EXPECTED = {
    "echo": "yes\nuser\n",
    "file": "kept",
    "cat": "kept",
    "listed": True,
    "found": True,
    "running": False,
}
URLS = ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL")


@pytest.mark.parametrize("way", ["one url", "domain"])
@pytest.mark.parametrize("version", ["v2-20", "v2-31"])
def test_a_python_client_of_old_works(server: Server, version: str, way: str) -> None:
    assert _run(_python(version), _env(server, way)) == EXPECTED


def test_the_first_python_client_works_by_the_domain(server: Server) -> None:
    # 1.x reads no other address: https://api.{domain} and https://{port}-{id}.{domain}.
    assert _run(_python("v1"), _env(server, "domain")) == EXPECTED


@pytest.mark.parametrize("way", ["one url", "domain"])
def test_a_javascript_client_of_old_works(server: Server, way: str) -> None:
    # It lies there because a module finds its packages in a folder above itself.
    program = official.node_packages().parent / "old" / "smoke.mjs"
    assert _run(["node", str(program)], _env(server, way)) == EXPECTED


def _python(version: str) -> list[str]:
    return [str(official.old_interpreter(version)), str(HERE / "smoke.py")]


def _env(server: Server, way: str) -> dict[str, str]:
    env = official.resolving_env(server)
    return env if way == "one url" else {name: value for name, value in env.items() if name not in URLS}


def _run(argv: list[str], env: dict[str, str]) -> object:
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
