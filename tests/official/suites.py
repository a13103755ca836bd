"""The six suites: where each lies in its repository, and the command that runs it unmodified."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.official import trees
from tests.official.trees import Trees
from tests.support.official import resolving_env
from tests.support.server import Server
from tests.support.source import ROOT

ENVIRONMENT = ROOT / ".venv-official"
NODE = ENVIRONMENT / "node"
LIMIT_S = 1200


class Suite(NamedTuple):
    """One of the official suites."""

    name: str
    title: str
    data: str
    """Section of suites.toml that says what its tests need."""
    source: str
    """Its folder in the repository."""
    entries: tuple[str, ...]
    """What of the source folder is copied."""
    package: str | None
    """npm package that stands in for `../src`; None: not of vitest, or the command line."""
    tests: tuple[str, ...]
    """Folders below `tests` (pytest), or patterns (vitest)."""


class Run(NamedTuple):
    """What a suite was run on, and where it tells what came out."""

    suite: Suite
    server: Server
    folder: Path
    skip: tuple[str, ...]
    """Patterns of files that do not speak to a server."""
    report: Path
    log: Path
    interpreter_template: str


_PYTHON = ("tests", "pytest.ini")
_JAVASCRIPT = ("tests", "src", "package.json", "tsconfig.json")

SUITES = (
    Suite("py-sync", "Python SDK, sync", "python", "packages/python-sdk", _PYTHON, None, ("sync",)),
    Suite("py-async", "Python SDK, async", "python", "packages/python-sdk", _PYTHON, None, ("async",)),
    Suite(
        name="js",
        title="JavaScript SDK",
        data="javascript",
        source="packages/js-sdk",
        entries=_JAVASCRIPT,
        package="e2b",
        tests=("tests/{api,sandbox,template}/**/*.test.ts",),
    ),
    Suite("ci-py", "code-interpreter, Python", "interpreter-python", "python", _PYTHON, None, ("",)),
    Suite(
        name="ci-js",
        title="code-interpreter, JavaScript",
        data="interpreter-javascript",
        source="js",
        entries=_JAVASCRIPT,
        package="@e2b/code-interpreter",
        tests=("tests/**/*.test.ts",),
    ),
    Suite(
        name="cli",
        title="CLI",
        data="cli",
        source="packages/cli",
        entries=_JAVASCRIPT,
        package=None,
        # The rest of it runs the program's own sources, without a server.
        tests=(
            "tests/commands/sandbox/{backend_integration,exec_pipe}.test.ts",
            "tests/commands/template/create.test.ts",
        ),
    ),
)


def prepare(suite: Suite, found: Trees, scratch: Path) -> Path:
    """Copy what the suite needs, and return the folder to run it in."""
    is_python = suite.entries is _PYTHON
    # Tests find their packages in a node_modules above them.
    folder = scratch / suite.name if is_python else NODE / "trees" / suite.name
    repository = found.interpreter if suite.data.startswith("interpreter") else found.sdk
    trees.copy(repository / suite.source, folder, suite.entries)
    if suite.name == "cli":
        # The suite runs dist/index.js; it gets the published program instead of one built of the sources.
        published = NODE / "node_modules" / "@e2b" / "cli"
        shutil.copytree(published / "dist", folder / "dist")
        shutil.copy2(published / "package.json", folder / "package.json")
    if not is_python:
        shutil.copy2(ROOT / "tests" / "official" / "node" / "vitest.config.mjs", NODE / "vitest.config.mjs")
    return folder


def run(asked: Run) -> str | None:
    """Run the suite to its end.

    Leaves: its report and its log; the server running.

    Returns:
        None, or why there is no report to read.
    """
    act = _pytest if asked.suite.entries is _PYTHON else _vitest
    asked.report.unlink(missing_ok=True)
    argv, more = act(asked)
    env = _environment(asked) | more
    with asked.log.open("wb") as log:
        try:
            nothing = subprocess.DEVNULL
            subprocess.run(
                argv,
                cwd=asked.folder,
                env=env,
                stdin=nothing,
                stdout=log,
                stderr=log,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {LIMIT_S} s; see {asked.log}"
    return None if asked.report.exists() else f"wrote no report; see {asked.log}"


def _environment(asked: Run) -> dict[str, str]:
    kept = resolving_env(asked.server)
    home = asked.log.parent / "home"
    home.mkdir(exist_ok=True)
    return kept | {
        "HOME": str(home),  # the command line keeps a file there
        "PYTHONDONTWRITEBYTECODE": "1",
        "E2B_TESTS_TEMPLATE": asked.interpreter_template,
        "E2B_CLI_BACKEND_TEMPLATE_ID": "base",
        "E2B_PIPE_TEMPLATE_ID": "base",
        "E2B_PIPE_INTEGRATION_STRICT": "1",
    }


def _pytest(asked: Run) -> tuple[list[str], Mapping[str, str]]:
    argv = [str(ENVIRONMENT / "bin" / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    argv += [f"--junitxml={asked.report}", "-o", "junit_family=xunit1", "--numprocesses=2"]
    # The interpreter's suite sets no limit of its own.
    argv += ["--timeout=120"] if asked.suite.data.startswith("interpreter") else []
    argv += [f"--ignore-glob={asked.folder / pattern}" for pattern in asked.skip]
    argv += [str(asked.folder / "tests" / part) for part in asked.suite.tests]
    return argv, {}


def _vitest(asked: Run) -> tuple[list[str], Mapping[str, str]]:
    argv = ["node", str(NODE / "node_modules" / "vitest" / "vitest.mjs"), "run"]
    argv += ["--config", str(NODE / "vitest.config.mjs")]
    return argv, {
        "CLOCHE_SUITE_ROOT": str(asked.folder),
        "CLOCHE_SUITE_PACKAGE": asked.suite.package or "",
        "CLOCHE_SUITE_INCLUDE": json.dumps(asked.suite.tests),
        "CLOCHE_SUITE_EXCLUDE": json.dumps(asked.skip),
        "CLOCHE_SUITE_REPORT": str(asked.report),
        "PATH": os.environ["PATH"],
    }
