"""Every Python snippet of the user's document runs as it is printed, with the opt-in names of `cloche-e2b`.

Beyond those up to "Internet Access & Servers", which must run, the later ones that need nothing more run too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.compat.documents.stand_ins import SKIPPED, STAND_INS, StandIn
from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import Server
from tests.support.snippets import Snippet, extract
from tests.support.source import ROOT

HERE = Path(__file__).parent
SNIPPETS = extract(ROOT / "specs" / "user-documents.md", "python")
UNUSED = StandIn()


def parameters() -> list[object]:
    found: list[object] = []
    for snippet in SNIPPETS:
        needs = STAND_INS.get(snippet.number, UNUSED).needs
        marks = [pytest.mark.needs(*needs)] if needs else []
        if reason := SKIPPED.get(snippet.number):
            marks.append(pytest.mark.skip(reason))
        found.append(pytest.param(snippet, id=f"{snippet.number}-{snippet.heading}", marks=marks))
    return found


def run(snippet: Snippet, stand_in: StandIn, server: Server, work: Path) -> subprocess.CompletedProcess[str]:
    """Run it in a folder of its own, as a program that knows of the server only by its environment."""
    for name, content in stand_in.local_files:
        (work / name).write_bytes(content)
    (work / "prelude.py").write_text(stand_in.prelude)
    (work / "snippet.py").write_text(snippet.code)
    plan = {"sandbox_files": stand_in.sandbox_files, "host": stand_in.host}
    (work / "plan.json").write_text(json.dumps(plan))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "CLOCHE_"))}
    return subprocess.run(
        [sys.executable, str(HERE / "run_snippet.py")],
        env=env | server.env, cwd=work, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@NEEDS_A_SERVER
@pytest.mark.timeout(300)
@pytest.mark.parametrize("snippet", parameters())
def test_the_document_runs_as_it_is_printed(
    snippet: Snippet, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    stand_in = STAND_INS.get(snippet.number, UNUSED)
    done = run(snippet, stand_in, request.getfixturevalue(stand_in.server), tmp_path)
    assert done.returncode == 0, f"line {snippet.line}:\n{done.stdout}\n{done.stderr}"
    missing = [text for text in stand_in.prints if text not in done.stdout]
    assert not missing, done.stdout
    for name in stand_in.leaves:
        content = (tmp_path / name).read_bytes()
        assert content
        assert not name.endswith(".png") or content.startswith(b"\x89PNG\r\n\x1a\n")


def test_every_snippet_of_the_document_is_found() -> None:
    text = (ROOT / "specs" / "user-documents.md").read_text()
    assert len(SNIPPETS) == text.count("```python\n") == 27
    assert all(snippet.code in text for snippet in SNIPPETS)
    assert set(SKIPPED) | set(STAND_INS) <= {snippet.number for snippet in SNIPPETS}


def test_none_of_the_required_snippets_is_skipped() -> None:
    """Required: everything up to and with "Internet Access & Servers" (number 9)."""
    assert [number for number in SKIPPED if number <= 9] == []
