"""The rewrite from async to sync."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def unasync() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unasync", ROOT / "tools" / "unasync.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sync_client_is_in_step_with_the_async_one(unasync: ModuleType) -> None:
    assert unasync.stale(unasync.generate()) == []


def test_a_rule_that_matches_nothing_is_an_error(
    unasync: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unasync, "RULES", (*unasync.RULES, (r"\bno such word\b", "")))
    with pytest.raises(SystemExit, match="no such word"):
        unasync.generate()


def test_a_change_of_a_generated_file_is_noticed(unasync: ModuleType) -> None:
    files = unasync.generate()
    path = next(iter(files))
    assert unasync.stale({**files, path: "changed"}) == [path.relative_to(ROOT).as_posix()]


def test_nothing_async_is_left_over(unasync: ModuleType) -> None:
    text = unasync.rewrite("async def f(x: AsyncSandbox):\n    await x.aclose()\n", "a.py", Counter())
    assert text.endswith("\ndef f(x: Sandbox):\n    x.close()\n")
