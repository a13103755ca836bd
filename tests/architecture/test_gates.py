"""The checkers run as tests, so that one pytest session says whether a change may land."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.source import ROOT

BIN = Path(sys.executable).parent


def check(*argv: str) -> None:
    """Run a checker at the root of the project; its own words are the failure."""
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv[0]}:\n{done.stdout[-8000:]}{done.stderr[-4000:]}"


def test_ruff_finds_nothing() -> None:
    check(str(BIN / "ruff"), "check", "--output-format=concise", ".")


@pytest.mark.timeout(600)
def test_pyright_strict_finds_nothing() -> None:
    check(str(BIN / "pyright"))


def test_the_sync_client_is_generated_from_the_async_one() -> None:
    check(sys.executable, "tools/unasync.py", "--check")
