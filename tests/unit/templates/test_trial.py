"""The trial of what sandboxes have imported: what it tells of modules that fail, and of nothing else."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cloche_server.templates import builder, recipe, trial
from cloche_server.templates.builder import _Build
from cloche_wire.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path


def told(folder: Path, modules: dict[str, str], *missing: str) -> list[str]:
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    command = trial.command([*missing, *modules], sys.executable)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return trial.warnings(done.stdout)


def test_nothing_is_told_of_modules_that_work_or_are_not_there(tmp_path: Path) -> None:
    assert told(tmp_path, {"loud": "print('noise')"}, "no_such", "no_such.part", "json.no_part") == []


def test_one_that_somebody_has_named_is_told_also_where_it_is_not_there() -> None:
    command = trial.command(["json", "no_such"], sys.executable, is_named=True)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (warning,) = trial.warnings(done.stdout)
    assert warning.startswith("no_such cannot be imported: ModuleNotFoundError")


def test_a_module_that_fails_is_told_with_its_error_and_the_others_are_tried(tmp_path: Path) -> None:
    modules = {
        "first": "import no_such_library",
        "second": "raise SystemExit(3)",
        "third": "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
    }
    first, second, third = told(tmp_path, modules)
    assert first.startswith(
        "first cannot be imported: ModuleNotFoundError: No module named 'no_such_library'"
    )
    assert second.startswith("second cannot be imported: SystemExit: 3")
    assert third.startswith("third starts a thread when it is imported")


def test_a_module_that_ends_python_is_told(tmp_path: Path) -> None:
    (warning,) = told(tmp_path, {"fine": "", "crash": "import os; os.abort()", "after": "import no_such"})
    assert warning.startswith("importing crash ends Python, by SIGABRT: contexts start a Python of their own")


def test_a_module_that_hangs_is_told_once_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "DEADLINE_S", 0.5)
    (warning,) = told(tmp_path, {"endless": "while True: pass"})
    assert warning.startswith("importing endless takes longer than 0 s")


@pytest.mark.parametrize("fails", [False, True])
def test_a_warning_stands_in_the_log_of_a_build_that_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    said: list[str] = []

    def answer(build: object, title: str, command: list[str], **_: str) -> str:
        if fails:
            raise Unavailable("no python3")
        return '["pandas cannot be imported"]'

    monkeypatch.setattr(builder._Build, "_command", answer)
    build = _Build(tmp_path, recipe.code_interpreter(), None, said.append, 0)
    build._try_imports()
    (warning,) = build.warnings
    assert said == [f"  warning: {warning}"]
    assert ("no python3" in warning) == fails
