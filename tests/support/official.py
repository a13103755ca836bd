"""The official clients: their environments, and our suites run under them."""

import os
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from cloche_server.cli import tls
from tests.support.server import Server
from tests.support.source import ROOT

PROJECT = ROOT / "tests" / "compat" / "e2b_python"
ENVIRONMENT = ROOT / ".venv-compat"
NODE_PROJECT = ROOT / "tests" / "compat" / "e2b_js"
RESOLUTION = Path(tls.__file__).with_name("name_resolution")
"""What `cloche tls init` puts before a user's programs where names below localhost do not resolve."""


@cache
def interpreter() -> Path:
    """The Python that has the official clients; its environment is made, or brought up to its lock, first."""
    _make("python")
    return ENVIRONMENT / "bin" / "python"


@cache
def node_packages() -> Path:
    """The node_modules that has the official clients and the command line, brought up to its lock first."""
    _make("node")
    return NODE_PROJECT / "node_modules"


@cache
def old_interpreter(version: str) -> Path:
    """The Python that has an older official client: `v1`, `v2-20` or `v2-31`; made if need be."""
    _make(version)
    return ROOT / f".venv-compat-{version}" / "bin" / "python"


def _make(kind: str) -> None:
    argv = [str(ROOT / "tools" / "official-clients"), kind]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"cannot make the environment of the official clients: {done.stderr}"


def client_env(server: Server) -> dict[str, str]:
    """Environment of a program that uses the official client: nothing of ours but where the server is."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("E2B_", "CLOCHE_", "PYTHON"))
    }
    return kept | server.env


def resolving_env(server: Server) -> dict[str, str]:
    """The same for one that opens `https://` and the name of a port, as `cloche tls init` prints it."""
    host = server.env["E2B_DOMAIN"].partition(":")[0]
    return client_env(server) | {
        "CLOCHE_RESOLVE": f"{host}=127.0.0.1",
        "PYTHONPATH": str(RESOLUTION),
        "NODE_OPTIONS": f"--require={RESOLUTION / 'resolve.cjs'}",
        "NO_UPDATE_NOTIFIER": "1",
    }


def run_suite(
    server: Server, report: Path, suite: str = "suite", variables: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Run all of one of the client's suites once.

    Args:
        server: What it speaks to.
        report: Where its own report goes.
        suite: A folder of `PROJECT`.
        variables: What it is told besides.

    Returns:
        For every test, by `file::name`, what went wrong; "" when nothing did, "skipped: ..." when it was. A
        test with parameters is well when it is well with all of them.
    """
    argv = [str(interpreter()), "-m", "pytest", "-c", str(PROJECT / "suite.ini"), f"--rootdir={PROJECT}"]
    argv += ["-q", f"--junitxml={report}", "-o", "junit_family=xunit1", str(PROJECT / suite)]
    done = subprocess.run(
        argv,
        env=client_env(server) | dict(variables or {}),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert report.exists(), f"the suite did not run:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    verdicts: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name, verdict = _name(case), _verdict(case)
        earlier = verdicts.get(name, "")
        verdicts[name] = earlier if earlier and not earlier.startswith("skipped: ") else verdict or earlier
    return verdicts


def run_node_suite(server: Server, suite: Path, folder: Path) -> dict[str, str]:
    """Run each `*.test.mjs` once, by Node's own test runner; the folder takes the reports.

    Returns:
        For every test, by `file::name`, what went wrong; "" when nothing did.
    """
    assert node_packages().is_dir()
    verdicts: dict[str, str] = {}
    for file in sorted(suite.glob("*.test.mjs")):
        report = folder / f"{file.name}.xml"
        argv = ["node", "--test", "--test-reporter=junit", f"--test-reporter-destination={report}", str(file)]
        done = subprocess.run(
            argv,
            env=resolving_env(server),
            cwd=suite,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert report.exists(), f"{file.name} did not run:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        cases = ElementTree.parse(report).iter("testcase")
        verdicts |= {f"{file.name}::{case.get('name')}": _verdict(case) for case in cases}
    return verdicts


def _name(case: ElementTree.Element) -> str:
    return f"{Path(case.get('file', '')).name}::{(case.get('name') or '').partition('[')[0]}"


def _verdict(case: ElementTree.Element) -> str:
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            return f"{found.get('message', '')}\n{found.text or ''}"
    skipped = case.find("skipped")
    return "" if skipped is None else f"skipped: {skipped.get('message', '')}"
