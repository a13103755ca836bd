"""Changes of a root by our own program: files that are gathered and placed as Docker does, users, folders."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche_server.node import root_changes

Copy = Callable[..., int]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(root_changes, "GATHERED", str(tmp_path / "gathered"))
    return tmp_path


def change(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["-c", *words])
    return root_changes.main()


@pytest.fixture
def copy(root: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """Gather and place; the exit status of the first that fails."""
    owner = f"{os.getuid()}:{os.getgid()}"

    def copied(source: str, target: str, mode: str = "") -> int:
        gathered = change(monkeypatch, "gather", str(root / source))
        return gathered or change(monkeypatch, "place", f"{root}{target}", owner, mode)

    return copied


def test_gathered_files_are_placed_as_docker_does(
    root: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "out" / "sub").mkdir(parents=True)
    for name in ("out/a b.txt", "out/.hidden", "out/sub/c"):
        (root / name).write_text(name)
    (root / "out" / "link").symlink_to("a b.txt")
    (root / "out" / "twin").hardlink_to(root / "out" / "a b.txt")
    (root / "there" / "sub").mkdir(parents=True)
    (root / "there" / "sub" / "kept").touch()
    # A folder leaves its content, merged into what is there.
    assert copy("out", "/there") == 0
    assert (root / "there" / "a b.txt").read_text() == "out/a b.txt"
    assert (root / "there" / "a b.txt").samefile(root / "there" / "twin")
    assert (root / "there" / ".hidden").exists()
    assert {path.name for path in (root / "there" / "sub").iterdir()} == {"c", "kept"}
    assert (root / "there" / "link").is_symlink()
    # A file takes the target's name, or goes into a folder.
    assert copy("out/a b.txt", "/new/name", "0600") == 0
    assert (root / "new" / "name").stat().st_mode & 0o777 == 0o600
    assert copy("out/a b.txt", "/new/") == 0
    assert (root / "new" / "a b.txt").exists()
    assert copy("out/sub/*", "/many") == 0
    assert (root / "many").read_text() == "out/sub/c"
    # A folder with a single file in it is still a folder.
    assert copy("out/sub", "/single") == 0
    assert (root / "single" / "c").exists()
    assert not (root / "gathered").exists()
    assert copy("nothing", "/x") == 1
    assert "no such file" in capsys.readouterr().err


def test_a_file_is_no_folder_and_a_folder_no_file(
    root: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "out" / "name").mkdir(parents=True)
    (root / "out" / "name" / "x").touch()
    (root / "there").mkdir()
    (root / "there" / "name").touch()
    assert copy("out", "/there") == 1
    assert "a file stands where a folder is to be" in capsys.readouterr().err


def test_what_is_new_of_a_folder_belongs_to_its_user(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert change(monkeypatch, "workdir", str(root / "a" / "b"), str(os.getuid())) == 0
    assert (root / "a" / "b").is_dir()
    assert change(monkeypatch, "workdir", str(root / "a" / "b"), "nobody-of-that-name") == 0
    assert change(monkeypatch, "workdir", str(root / "c"), "nobody-of-that-name") == 1
    assert "no such user" in capsys.readouterr().err
    assert not (root / "c").exists()


def test_users_are_found_by_name_and_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for asked, answer in (("root", "root"), ("0", "root")):
        assert change(monkeypatch, "user", asked) == 0
        assert capsys.readouterr().out == f"{answer}\n"
    assert change(monkeypatch, "home", "root") == 0
    assert capsys.readouterr().out.startswith("/")
    assert change(monkeypatch, "home", "nobody-of-that-name") == 0
    assert capsys.readouterr().out == "\n"
    assert change(monkeypatch, "user", "123456789") == 1
    assert "no user of that number" in capsys.readouterr().err
