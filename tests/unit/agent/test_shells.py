"""Which shell runs the lines of clients, by what the template has."""

from pathlib import Path

import pytest

from cloche_agent.process import shells


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shells, "BASH", str(tmp_path / "bash"))
    monkeypatch.setattr(shells, "SH", str(tmp_path / "sh"))
    return tmp_path


def _make(path: Path) -> str:
    path.touch(mode=0o755)
    return str(path)


def test_lines_of_clients_are_run_by_sh_where_there_is_no_bash(folder: Path) -> None:
    sh = _make(folder / "sh")
    assert shells.settled([shells.BASH, "-l", "-c", "echo a"]) == [sh, "-l", "-c", "echo a"]
    assert shells.settled([shells.BASH, "-i", "-l"]) == [sh, "-i", "-l"]
    assert shells.shell() == sh


def test_bash_is_what_runs_them_where_it_is(folder: Path) -> None:
    _make(folder / "sh")
    bash = _make(folder / "bash")
    assert shells.settled([bash, "-l", "-c", "echo a"])[0] == bash


def test_who_means_bash_hears_that_there_is_none(folder: Path) -> None:
    _make(folder / "sh")
    for argv in ([shells.BASH, "script.sh"], [shells.BASH, "-c", "echo a"], [shells.BASH]):
        assert shells.settled(argv) == argv


def test_without_any_shell_bash_is_what_is_missing(folder: Path) -> None:
    assert shells.settled([shells.BASH, "-l", "-c", "a"])[0] == shells.BASH
