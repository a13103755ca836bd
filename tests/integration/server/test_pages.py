"""What the pages print is run here: the newcomer's two commands, and all that the README shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import official, templates
from tests.support.capabilities import missing
from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import Server, free_port
from tests.support.source import ROOT

pytestmark = NEEDS_A_SERVER

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def shell(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script as somebody who types it in the source tree."""
    path = f"{ROOT / '.venv-tools' / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-eu", "-c", script],
        cwd=ROOT, env=os.environ | {"PATH": path} | env,
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


@pytest.fixture
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of a first `make up` beside the machine's own server; the template is there already."""
    base = tmp_path_factory.mktemp("up")  # short: the path of a Unix socket has 107 bytes
    folder = templates.link(base / "templates")
    return {"STATE": str(base / "state"), "PORT": str(free_port()), "CLOCHE_TEMPLATES": str(folder)}


def test_make_up_shows_hello_twice_and_make_down_ends_it(newcomer: dict[str, str]) -> None:
    """The two commands of the README; the second `make up` finds the server running."""
    strongest = "container" if missing("runsc") else "gvisor"
    try:
        first = shell("make up", **newcomer)
        assert first.returncode == 0, first.stdout + first.stderr
        address = f"http://127.0.0.1:{newcomer['PORT']}"
        for shown in ("Hello, E2B!", address, "e2b_", f"Isolation  {strongest}"):
            assert shown in first.stdout
        second = shell("make up", **newcomer)
        assert second.returncode == 0, second.stdout + second.stderr
        assert "Hello, E2B!" in second.stdout
        assert "runs already" in second.stdout
    finally:
        ended = shell("make down", **newcomer)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_commands_of_the_readme_run(server: Server, tmp_path: Path) -> None:
    """Every `cloche` line, in the order of the page, in one shell with the page's set-up lines."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    wanted = [line for line in lines if re.match(r"export|eval|cloche ", line)]
    # Apart, in a shell without `cloche env`: the authority it makes clients trust is one more for a template.
    builds = [line for line in wanted if line.startswith("cloche template build")]
    wanted = [line for line in wanted if line not in builds]
    folders = {"CLOCHE_STATE": str(server.state), "CLOCHE_TEMPLATES": str(server.templates)}
    (tmp_path / "Dockerfile").write_text("FROM e2bdev/base\nRUN echo made > /made\n")
    for line in builds:
        in_folder = "" if "polyglot" in line else f"cd {tmp_path}\n"
        # That of polyglot would take two minutes where CI has not made it before.
        if in_folder or missing("polyglot") is None:
            built = shell(f'export PATH="$PWD/.venv/bin:$PATH"\n{in_folder}{line}', **folders)
            assert built.returncode == 0, built.stdout + built.stderr
    assert len(wanted) >= 4
    done = shell("\n".join(wanted), **folders)
    assert done.returncode == 0, done.stdout + done.stderr


def test_program_of_the_readme_runs_with_the_official_client(server: Server) -> None:
    """The page's Python, unchanged, in the environment that `cloche env` makes."""
    program, *_ = blocks("python")
    done = subprocess.run(
        [official.interpreter(), "-c", program],
        env=official.client_env(server), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Hello" in done.stdout


@pytest.mark.needs("polyglot")
def test_languages_of_the_readme_run_with_the_official_client(server: Server) -> None:
    """The page's example of more languages, unchanged."""
    (program,) = (block for block in blocks("python") if "language=" in block)
    done = subprocess.run(
        [official.interpreter(), "-c", program],
        env=official.client_env(server), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3.5", "6", "6", "6", "6"]


@pytest.mark.needs("runsc")
def test_memory_of_the_readme_is_kept_by_our_own_client(gvisor_server: Server) -> None:
    """The page's pause, forks and snapshot, unchanged."""
    (program,) = (block for block in blocks("python") if "pause()" in block)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | gvisor_server.env, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['42', '42', '42', '42']"
