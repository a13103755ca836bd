"""A newcomer can follow one request through ten files: they exist, and each names the step after it."""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.source import ROOT

SERVER = "packages/server/src/cloche_server"
AGENT = "packages/agent/src/cloche_agent"


class Step(NamedTuple):
    """One stop of the request: the file, what to read there, and a word that leads on."""

    path: str
    defines: str
    leads_on: str


STEPS = [
    Step("packages/sdk/src/cloche/_async/sandbox.py", "create", "/v2/sandboxes"),
    Step(f"{SERVER}/api/sandboxes.py", "create_sandbox", "placement"),
    Step(f"{SERVER}/placement/policy.py", "choose_node", "Node"),
    Step(f"{SERVER}/node/create.py", "create", "driver"),
    Step(f"{SERVER}/isolation/base.py", "start", "listeners"),
    Step(f"{AGENT}/init.py", "handle_init", "token"),
    Step(f"{SERVER}/edge/forward.py", "forward", "route"),
    Step(f"{AGENT}/kernels/service.py", "execute", "run"),
    Step(f"{AGENT}/kernels/python_kernel/shell.py", "run", "publish_result"),
    Step("packages/wire/src/cloche_wire/execution.py", "parse_event", "end_of_execution"),
]


def names_defined(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.path.rsplit("/", 1)[-1])
def test_a_step_of_the_request_is_where_the_guide_says(step: Step) -> None:
    path = ROOT / step.path
    assert not step.defines or step.defines in names_defined(path)
    assert step.leads_on in path.read_text()


def test_the_guide_and_the_readme_name_the_ten_files() -> None:
    for page in ("README.md", "docs/one-request.md"):
        text = (ROOT / page).read_text()
        missing = [step.path for step in STEPS if step.path.split("/src/")[1] not in text]
        assert not missing, page
