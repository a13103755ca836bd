"""Whether a stranger could load the server's own code, judged by modes."""

from pathlib import Path

from cloche_server.cli import privileges


def test_what_the_system_ships_is_open() -> None:
    assert privileges.is_open_to_others(Path("/etc/passwd"))
    assert privileges.is_open_to_others(Path("/usr/bin"))


def test_file_that_others_cannot_read_is_not_open(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("")
    (tmp_path / "module.py").chmod(0o640)
    assert not privileges.is_open_to_others(tmp_path / "module.py")


def test_file_below_a_closed_folder_is_not_open_and_neither_is_a_link_to_it(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "module.py").write_text("")
    (tmp_path / "link.py").symlink_to(closed / "module.py")
    assert not privileges.is_open_to_others(closed / "module.py")
    assert not privileges.is_open_to_others(tmp_path / "link.py")


def test_folder_below_a_closed_one_cannot_be_entered_though_it_is_open_itself(tmp_path: Path) -> None:
    closed, inner = tmp_path / "closed", tmp_path / "closed" / "state"
    inner.mkdir(parents=True)
    inner.chmod(0o711)
    closed.chmod(0o700)
    assert not privileges.can_be_entered_by_others(inner)
    assert privileges.can_be_entered_by_others(Path("/usr/bin"))
