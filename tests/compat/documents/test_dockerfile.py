"""The user's document's own Dockerfile, as it is printed, becomes a template whoever builds it.

By our command, by the official command line (`create`, and `migrate`, to which its `build` of old points)
and by both official builders; then sandboxes of the official Python clients have what it asks for.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import Server
from tests.support.snippets import extract
from tests.support.source import ROOT

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("internet", "node"), pytest.mark.timeout(600)]

(DOCKERFILE,) = extract(ROOT / "specs" / "user-documents.md", "dockerfile")
START = "/root/.jupyter/start-up.sh"
URLS = ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL")

LOOK = """
import json
from PACKAGE import Sandbox

sandbox = OPENED
try:
    def said(command):
        return sandbox.commands.run(command).stdout.strip()

    def shown(code, language):
        execution = sandbox.run_code(code, language=language)
        assert execution.error is None, execution.error
        return execution.text

    found = {
        "home": said("pwd; whoami"),
        "node": said("cd /tmp && node -p 'typeof require(`axios`).get + typeof require(`express`)'"),
        "git": said("git --version")[:11],
        "vim": said("vim --version | head -n 1")[:3],
        "curl": said("curl --version")[:4],
        "seaborn": said("python3 -c 'import seaborn; print(seaborn.__name__)'"),
    }
    if hasattr(sandbox, "run_code"):
        found["python"] = shown("import seaborn\\nseaborn.__name__", "python")
        found["js"] = shown("typeof require('axios').get + ' ' + typeof require('express')", "js")
    print(json.dumps(found))
finally:
    sandbox.kill()
"""
BY_COMMANDS = {
    "home": "/home/user\nuser",
    "node": "functionfunction",
    "git": "git version",
    "vim": "VIM",
    "curl": "curl",
    "seaborn": "seaborn",
}
IN_ALL = BY_COMMANDS | {"python": "seaborn", "js": "function function"}

OF_PYTHON = """
import sys
from e2b import Template

template = Template().from_dockerfile(sys.argv[1])
template.set_start_cmd("/root/.jupyter/start-up.sh", "sleep 20")
Template.build(template, sys.argv[2])
"""
OF_JAVASCRIPT = """
import { Template } from "e2b";

const template = Template().fromDockerfile(process.argv[2]);
await Template.build(template.setStartCmd("/root/.jupyter/start-up.sh", "sleep 20"), process.argv[3]);
"""

Build = Callable[[Server, Path, str], None]


def ours(server: Server, folder: Path, name: str) -> None:
    argv = [sys.executable, "-m", "cloche_server.cli.main", "template", "build", str(folder), "--name", name]
    printed = run([*argv, "-c", START, "--state", str(server.state)], os.environ, folder)
    assert f"Runs in every sandbox without a start command: {START}" in printed


def by_official_cli(server: Server, folder: Path, name: str) -> None:
    told = cli(server, folder, "create", name, "-c", START, "--ready-cmd", "sleep 20")
    assert f"Runs in every sandbox without a start command: {START}" in told


def by_official_cli_and_the_domain_alone(server: Server, folder: Path, name: str) -> None:
    argv = ["node", str(program()), "template", "create", name, "-c", START, "--ready-cmd", "sleep 20"]
    run(argv, of_domain(server) | {"HOME": str(folder)}, folder)


def by_what_migrate_writes(server: Server, folder: Path, name: str) -> None:
    cli(server, folder, "migrate", "-n", name, "-c", START, "-l", "python-sync")
    run([str(official.interpreter()), "build_prod.py"], official.client_env(server), folder)


def by_python(server: Server, folder: Path, name: str) -> None:
    argv = [str(official.interpreter()), "-c", OF_PYTHON, DOCKERFILE.code, name]
    run(argv, official.client_env(server), folder)


def by_javascript(server: Server, folder: Path, name: str) -> None:
    script = folder / "build.mjs"
    script.write_text(OF_JAVASCRIPT)
    (folder / "node_modules").symlink_to(official.node_packages())
    run(["node", str(script), DOCKERFILE.code, name], official.client_env(server), folder)


@pytest.mark.parametrize(
    "build",
    [
        ours,
        by_official_cli,
        by_official_cli_and_the_domain_alone,
        by_what_migrate_writes,
        by_python,
        by_javascript,
    ],
)
def test_the_documents_dockerfile_builds_and_its_packages_are_there(
    server: Server, tmp_path: Path, build: Build
) -> None:
    (tmp_path / "e2b.Dockerfile").write_text(DOCKERFILE.code)
    name = build.__name__.replace("_", "-")
    build(server, tmp_path, name)
    env = official.resolving_env(server)
    assert look(official.interpreter(), env, "e2b_code_interpreter", f"Sandbox.create({name!r})") == IN_ALL
    server.request("DELETE", f"/templates/{name}").raise_for_status()


def test_the_client_that_the_document_was_written_for_opens_it(server: Server, tmp_path: Path) -> None:
    """`Sandbox(template=...)`, as it is printed."""
    (tmp_path / "e2b.Dockerfile").write_text(DOCKERFILE.code)
    ours(server, tmp_path, "printed")
    opened = "Sandbox(template='printed')"
    assert look(official.old_interpreter("v1"), of_domain(server), "e2b", opened) == BY_COMMANDS
    server.request("DELETE", "/templates/printed").raise_for_status()


def look(interpreter: Path, env: Mapping[str, str], package: str, opened: str) -> object:
    """What a program of an official Python client finds in a sandbox that it opens so."""
    argv = [str(interpreter), "-c", LOOK.replace("PACKAGE", package).replace("OPENED", opened)]
    return json.loads(run(argv, env, Path("/")).splitlines()[-1])


def of_domain(server: Server) -> dict[str, str]:
    """The environment of a client that is told the server's domain alone, as E2B's own are."""
    env = official.resolving_env(server)
    return {name: value for name, value in env.items() if name not in URLS}


def cli(server: Server, folder: Path, *argv: str) -> str:
    env = official.resolving_env(server) | {"HOME": str(folder)}
    return run(["node", str(program()), "template", *argv], env, folder)


def program() -> Path:
    return official.node_packages() / "@e2b" / "cli" / "dist" / "index.js"


def run(argv: list[str], env: Mapping[str, str], folder: Path) -> str:
    done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
