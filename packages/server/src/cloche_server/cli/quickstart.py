"""`cloche quickstart`: the first program of the user's document, run in a sandbox of the running server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from cloche_server import config as configuration
from cloche_server.cli import env as environment
from cloche_server.cli.lock import running_server
from cloche_server.cli.output import explain, note, state_option
from cloche_wire.errors import DeadlineExceeded, Unavailable

PROGRAM = """from e2b_code_interpreter import Sandbox

# Create a sandbox
with Sandbox() as sandbox:
    # Run Python code
    execution = sandbox.run_code("print('Hello, E2B!')")
    print(execution.text)  # Output: Hello, E2B!

    # List files in sandbox
    files = sandbox.files.list('/')
    print(files)
"""
_TIMEOUT_S = 120
_LINE_LENGTH = 300
"""The list of files is one line of some thousand characters."""


@click.command()
@state_option
def quickstart(state: str | None) -> None:
    """Run a first program in a sandbox, and say what to do next."""
    with explain():
        config = configuration.load({"state": state})
        server = running_server(config.state_dir)
        variables = environment.variables(config, server)
        note("Running this in a sandbox:\n")
        note("".join(f"    {line}\n" for line in PROGRAM.splitlines()))
        note("Its output:\n")
        note("".join(f"    {_shortened(line)}\n" for line in run(variables).splitlines()))
        command = f"{_own_command()} env --state {config.state}"
        note(f"Address    {server.url}")
        note(f"API key    {variables['E2B_API_KEY']}   (kept in {config.state_dir / 'api-key'})")
        note(f"Isolation  {server.isolation}")
        note("")
        note("Next: point any E2B client here, unmodified, and go on as with the hosted service:")
        note(f'    eval "$({command})"')
        note("    pip install e2b-code-interpreter      # or: npm install @e2b/code-interpreter")


def _shortened(line: str) -> str:
    left = len(line) - _LINE_LENGTH
    return line if left <= 0 else f"{line[:_LINE_LENGTH]}... ({left} more characters)"


def _own_command() -> str:
    """Return how this command can be called again, from any folder."""
    path = Path(sys.argv[0]).absolute()
    return (
        str(path)
        if path.name == "cloche" and path.exists()
        else f"{sys.executable} -m cloche_server.cli.main"
    )


def run(variables: dict[str, str]) -> str:
    """Run the program with this environment; return what it printed.

    Raises:
        Unavailable: It failed, or the client is not installed; the message ends with its last words.
        DeadlineExceeded: It did not end in time.
    """
    try:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(f"the quick start did not end within {_TIMEOUT_S} s") from error
    if result.returncode != 0:
        last = result.stderr.strip().rpartition("\n")[2] or f"status {result.returncode}"
        raise Unavailable(f"the quick start failed: {last}", hint="see `cloche doctor` and STATE/log")
    return result.stdout
