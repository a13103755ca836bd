"""The unmodified command line (npm @e2b/cli, pinned in ../e2b_js) drives sandboxes of this server."""

import contextlib
import json
import os
import pty
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox
from tests.support.server import Server
from tests.support.waiting import until

from cloche import Sandbox, SandboxInfo

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("node")]

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cli_env(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the program finds the server by; its home is empty."""
    return official.resolving_env(server) | {"HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.fixture(scope="module")
def cli(cli_env: dict[str, str]) -> Cli:
    """Call the program with these arguments."""

    def call(*argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            ["node", str(_program()), *argv],
            env=cli_env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **given,
        )

    return call


@pytest.fixture(scope="module")
def sandbox(cli: Cli, server: Server) -> Iterator[str]:
    """The id of a sandbox that the program itself has created."""
    done = cli("sandbox", "create", "base", "--detach", "--timeout", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = [item.sandbox_id for item in _listed(server) if item.sandbox_id in done.stdout]
    yield found
    server.request("DELETE", f"/sandboxes/{found}")


def test_create_prints_the_id_of_a_running_sandbox(sandbox: str, server: Server) -> None:
    assert server.request("GET", f"/sandboxes/{sandbox}").json()["state"] == "running"


def test_exec_passes_output_and_exit_code_through(cli: Cli, sandbox: str) -> None:
    done = cli("sandbox", "exec", sandbox, "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\nexit status 7\n")


def test_exec_takes_user_cwd_and_envs(cli: Cli, sandbox: str) -> None:
    done = cli(
        "sandbox",
        "exec",
        "--user",
        "root",
        "--cwd",
        "/tmp",
        "--env",
        "GIVEN=a b",
        sandbox,
        'whoami; pwd; echo "$GIVEN"',
    )
    assert done.stdout == "root\n/tmp\na b\n", done.stderr


def test_exec_pipes_its_stdin(cli: Cli, sandbox: str) -> None:
    text = "one\ntwo\n" * 20_000
    done = cli("sandbox", "exec", sandbox, "cat", stdin=text)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text


def test_exec_in_the_background_prints_a_pid_and_returns(cli: Cli, sandbox: str) -> None:
    done = cli("sandbox", "exec", "--background", sandbox, "sleep 300")
    assert done.returncode == 0
    assert any(word.strip(".").isdigit() for word in done.stderr.split()), done.stderr


def test_connect_opens_a_terminal_of_the_size_of_ours(cli_env: dict[str, str], sandbox: str) -> None:
    ours, its = pty.openpty()
    termios.tcsetwinsize(ours, (33, 99))
    argv = ["node", str(_program()), "sandbox", "connect", sandbox]
    with subprocess.Popen(
        argv, env=cli_env, stdin=its, stdout=its, stderr=its, start_new_session=True
    ) as connected:
        os.close(its)
        os.write(ours, b"stty size; exit 0\n")
        shown = b""
        # A terminal whose other end is closed answers with an error.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                shown += piece
        assert connected.wait(timeout=60) == 0, shown
    os.close(ours)
    assert b"33 99" in shown


def test_list_shows_it_and_filters_by_state_and_metadata(
    cli: Cli, sandbox: str, sandboxes: MakeSandbox
) -> None:
    other = sandboxes(metadata={"mark": "of the cli"}).sandbox_id
    assert {sandbox, other} <= {item["sandboxId"] for item in _json(cli("sandbox", "list", "-f", "json"))}
    marked = _json(cli("sandbox", "list", "-m", "mark=of the cli", "-f", "json"))
    assert [item["sandboxId"] for item in marked] == [other]
    assert _json(cli("sandbox", "list", "-s", "paused", "-f", "json")) == []


def test_info_tells_of_one(cli: Cli, sandbox: str) -> None:
    info = _json(cli("sandbox", "info", sandbox, "-f", "json"))
    assert (info["sandboxId"], info["state"]) == (sandbox, "running")


def test_logs_are_printed_line_by_line(cli: Cli, sandbox: str) -> None:
    done = cli("sandbox", "logs", sandbox)
    assert done.returncode == 0, done.stdout + done.stderr
    as_json = cli("sandbox", "logs", sandbox, "--format", "json")
    assert as_json.returncode == 0
    lines = [json.loads(line) for line in as_json.stdout.splitlines() if line.startswith("{")]
    assert lines
    assert all(isinstance(line["level"], str) for line in lines)


def test_metrics_are_printed(cli: Cli, sandbox: str) -> None:
    # Measured every 5 s, so there may be none at first.
    def printed() -> bool:
        done = cli("sandbox", "metrics", sandbox, "--format", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        return "cpu" in done.stdout.lower()

    until(printed, within_s=60, what="metrics of the sandbox")


def test_template_list_shows_the_default_one(cli: Cli) -> None:
    done = cli("template", "list", "-f", "json")
    assert "code-interpreter-v1" in {
        alias for item in _json(done) for alias in item["aliases"] + item.get("names", [])
    }


def test_kill_ends_it_once(cli: Cli, server: Server) -> None:
    done = cli("sandbox", "create", "base", "--detach")
    (created,) = [item.sandbox_id for item in _listed(server) if item.sandbox_id in done.stdout]
    assert cli("sandbox", "kill", created).returncode == 0
    assert server.request("GET", f"/sandboxes/{created}").status_code == 404
    again = cli("sandbox", "kill", created)
    assert "wasn't found" in again.stderr


def test_an_unknown_sandbox_is_an_error_with_its_reason(cli: Cli) -> None:
    done = cli("sandbox", "info", "inobodyknowsthisone00")
    assert done.returncode != 0
    assert "wasn't found" in done.stderr


def _program() -> Path:
    return official.node_packages() / "@e2b" / "cli" / "dist" / "index.js"


def _listed(server: Server) -> list[SandboxInfo]:
    return list(Sandbox.list(api_url=server.url, api_key=server.key).next_items())


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
