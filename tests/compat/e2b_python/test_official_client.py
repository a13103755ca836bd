"""Every claim of the suites holds for the unmodified official clients (PyPI, pinned in this folder)."""

import ast
import json
from pathlib import Path

import pytest
from tests.support import official, small_roots
from tests.support.fixtures import NEEDS_A_SERVER, running
from tests.support.oci_images import Images
from tests.support.registry import Registry
from tests.support.server import Server

SUITE, MEMORY_SUITE, IMAGE_SUITE = (
    Path(__file__).parent / name for name in ("suite", "memory_suite", "image_suite")
)
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


@pytest.fixture(
    scope="module", params=["container", pytest.param("gvisor", marks=pytest.mark.needs("runsc"))]
)
def image_verdicts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("images")
    images, password = Images(), "a-password-of-a-registry"
    env = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "FLAVOUR=musl"]}
    images.image("alpine", "3", [images.layer(small_roots.alpine_like())], config=env)
    images.image("distroless", "1", [images.layer(small_roots.distroless_like())])
    state = folder / "state"
    state.mkdir()
    with Registry(images).running() as registry, Registry(images, {"robot": password}).running() as closed:
        hosts = json.dumps([registry.host, closed.host])
        (state / "config.toml").write_text(f"[builds]\ninsecure_registries = {hosts}\n")
        told = {"TEST_REGISTRY": registry.host, "TEST_CLOSED_REGISTRY": closed.host}
        told["TEST_REGISTRY_PASSWORD"] = password
        with running(state, isolation=request.param) as server:
            return official.run_suite(server, folder / "report.xml", "image_suite", told)


@pytest.mark.needs("skopeo", "musl")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("claim", claims(IMAGE_SUITE))
def test_the_official_builder_on_images(claim: str, image_verdicts: dict[str, str]) -> None:
    _judge(image_verdicts[claim])


def _judge(verdict: str) -> None:
    if verdict.startswith("skipped: "):
        pytest.skip(verdict.removeprefix("skipped: "))
    assert not verdict, verdict
