"""Every claim of the suites holds for the unmodified official clients (PyPI, pinned in this folder)."""

import ast
from pathlib import Path

import pytest
from tests.support import official
from tests.support.fixtures import NEEDS_A_SERVER, running
from tests.support.server import Server

SUITE, MEMORY_SUITE = (Path(__file__).parent / name for name in ("suite", "memory_suite"))
POLYGLOT = "test_polyglot.py"
pytestmark = NEEDS_A_SERVER


def claims(suite: Path) -> list[str]:
    """Names of all tests of a suite, read from its source: they need another interpreter to be imported."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(suite.glob("test_*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(scope="module")
def verdicts(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return official.run_suite(server, tmp_path_factory.mktemp("official") / "report.xml")


# The first of them runs the whole suite.
@pytest.mark.timeout(1260)
@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, marks=pytest.mark.needs("polyglot") if claim.startswith(POLYGLOT) else ())
        for claim in claims(SUITE)
    ],
)
def test_the_official_python_client(claim: str, verdicts: dict[str, str]) -> None:
    _judge(verdicts[claim])


@pytest.fixture(scope="module")
def memory_verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("memory")
    # With some made ahead, as a server has by itself: what becomes of these is claimed nowhere else.
    with running(folder / "state", isolation="gvisor", ahead=2) as server:
        return official.run_suite(server, folder / "report.xml", "memory_suite")


@pytest.mark.needs("runsc")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("claim", claims(MEMORY_SUITE))
def test_the_official_python_client_with_memory_kept(claim: str, memory_verdicts: dict[str, str]) -> None:
    _judge(memory_verdicts[claim])


def _judge(verdict: str) -> None:
    if verdict.startswith("skipped: "):
        pytest.skip(verdict.removeprefix("skipped: "))
    assert not verdict, verdict
