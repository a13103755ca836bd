"""The unmodified command line builds, lists, publishes and deletes templates of this server."""

import json
import subprocess
from pathlib import Path

import pytest
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER, connect_options
from tests.support.server import Server

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("node"), pytest.mark.timeout(300)]

DOCKERFILE = """FROM e2bdev/base
COPY page.html /srv/www/index.html
RUN echo made > /srv/www/made
"""
SERVES = ("-c", "python3 -m http.server 8000 -d /srv/www", "--ready-cmd", "curl -fs localhost:8000/made")


def template(
    server: Server, folder: Path, *argv: str, by_domain: bool = False
) -> subprocess.CompletedProcess[str]:
    """Call `e2b template` in this folder, told one URL, or the domain alone."""
    env = official.resolving_env(server) | {"HOME": str(folder)}
    if by_domain:
        env = {name: value for name, value in env.items() if not name.endswith("_URL")}
    program = official.node_packages() / "@e2b" / "cli" / "dist" / "index.js"
    return subprocess.run(
        ["node", str(program), "template", *argv], env=env, cwd=folder, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def done(called: subprocess.CompletedProcess[str]) -> str:
    assert called.returncode == 0, called.stdout + called.stderr
    return called.stdout


@pytest.mark.parametrize("by_domain", [False, True])
def test_create_builds_a_dockerfile_whose_sandboxes_begin_as_it_says(
    server: Server, tmp_path: Path, by_domain: bool
) -> None:
    (tmp_path / "e2b.Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "page.html").write_text("a page")
    name = f"cli-{by_domain}".lower()
    done(template(server, tmp_path, "create", name, *SERVES, "--memory-mb", "512", by_domain=by_domain))
    listed = json.loads(done(template(server, tmp_path, "list", "-f", "json")))
    (found,) = [one for one in listed if name in one["aliases"]]
    assert (found["memoryMB"], found["public"]) == (512, False)
    sandbox = connect_options(server, Sandbox.create, name)
    try:
        assert sandbox.commands.run("curl -s --retry 9 --retry-connrefused localhost:8000").stdout == "a page"
    finally:
        sandbox.kill()
    done(template(server, tmp_path, "publish", "-y", name))
    assert server.request("GET", f"/templates/{name}").json()["public"] is True
    done(template(server, tmp_path, "delete", "-y", name))
    assert server.request("GET", f"/templates/{name}").status_code == 404


def test_a_failing_step_ends_create_with_its_reason(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM e2bdev/base\nRUN echo why >&2; exit 9\n")
    failed = template(server, tmp_path, "create", "failing")
    assert failed.returncode == 1
    assert "exit status 9" in failed.stderr
    assert "why" in failed.stdout


def test_the_build_of_old_sends_nothing_and_says_what_took_its_place(server: Server, tmp_path: Path) -> None:
    (tmp_path / "e2b.Dockerfile").write_text(DOCKERFILE)
    told = template(server, tmp_path, "build", "-c", "/root/.jupyter/start-up.sh")
    assert (told.returncode, told.stderr) == (1, "")
    assert "This is the v1 build system which is now deprecated." in told.stdout


def test_init_and_migrate_write_programs_that_build(server: Server, tmp_path: Path) -> None:
    """What the deprecated `build` sends its reader to: programs of the official builder."""
    done(template(server, tmp_path, "init", "-n", "begun", "-l", "python-sync"))
    assert (tmp_path / "begun" / "build_prod.py").exists()
    (tmp_path / "e2b.Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "page.html").write_text("a page")
    done(template(server, tmp_path, "migrate", "-n", "moved", *SERVES, "-l", "python-sync"))
    built = subprocess.run(
        [str(official.interpreter()), "build_prod.py"], env=official.client_env(server), cwd=tmp_path,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    assert server.request("GET", "/templates/moved").status_code == 200
    done(template(server, tmp_path, "delete", "-y", "moved"))
