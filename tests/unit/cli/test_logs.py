"""Log files are bounded, and a full disk does not stop the server."""

from pathlib import Path

from cloche_server.cli.logs import BoundedFile


def test_full_file_is_replaced_and_one_older_is_kept(tmp_path: Path) -> None:
    file = BoundedFile(tmp_path / "node.log", max_bytes=10)
    for line in (b"first...\n", b"second..\n", b"third...\n"):
        file.write(line)
    file.close()
    assert (tmp_path / "node.log").read_bytes() == b"third...\n"
    assert (tmp_path / "node.log.1").read_bytes() == b"second..\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node.log", "node.log.1"]


def test_lines_of_an_earlier_start_are_kept(tmp_path: Path) -> None:
    (tmp_path / "node.log").write_bytes(b"before\n")
    file = BoundedFile(tmp_path / "node.log")
    file.write(b"after\n")
    file.close()
    assert (tmp_path / "node.log").read_bytes() == b"before\nafter\n"


def test_write_after_the_file_is_gone_is_no_error(tmp_path: Path) -> None:
    file = BoundedFile(tmp_path / "node.log", max_bytes=4)
    file.write(b"abcd")
    (tmp_path / "node.log").unlink()
    file.write(b"efgh")
