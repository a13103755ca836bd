"""Which roots are ones over which an image of an agent goes on."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche_server.isolation.gvisor import other_roots


def folders(layer: Path, *names: str) -> Path:
    for name in names:
        (layer / name).mkdir(parents=True)
    return layer


def a_file(path: Path) -> None:
    path.write_text("")


def a_link(path: Path) -> None:
    path.symlink_to("/var")


def test_what_is_mounted_at_must_be_folders_or_missing(tmp_path: Path) -> None:
    assert other_roots.can_be_taken([folders(tmp_path / "least", "proc", "tmp")])
    assert other_roots.can_be_taken([folders(tmp_path / "usual", "proc", "tmp", "dev", "sys", ".cloche")])
    assert not other_roots.can_be_taken([folders(tmp_path / "no-proc", "tmp")])
    assert not other_roots.can_be_taken([folders(tmp_path / "no-tmp", "proc")])


@pytest.mark.parametrize("make", [a_file, a_link, os.mkfifo])
@pytest.mark.parametrize("name", ["proc", "tmp", "dev", "sys", ".cloche"])
def test_anything_else_there_is_not_followed(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    root = folders(tmp_path / "root", "proc", "tmp", "dev", "sys", ".cloche")
    (root / name).rmdir()
    make(root / name)
    assert not other_roots.can_be_taken([root])


def test_the_uppermost_layer_that_has_the_name_counts(tmp_path: Path) -> None:
    lower = folders(tmp_path / "lower", "proc", "tmp")
    upper = folders(tmp_path / "upper")
    upper.mkdir()
    assert other_roots.can_be_taken([upper, lower])
    a_link(upper / "tmp")
    assert not other_roots.can_be_taken([upper, lower])
    assert other_roots.can_be_taken([folders(tmp_path / "top", "tmp"), upper, lower])


@pytest.mark.needs("root")
def test_a_name_that_a_layer_hides_is_missing(tmp_path: Path) -> None:
    lower = folders(tmp_path / "lower", "proc", "tmp", "dev")
    upper = folders(tmp_path / "upper")
    upper.mkdir()
    os.mknod(upper / "dev", 0o20000, 0)
    assert other_roots.can_be_taken([upper, lower])
    os.mknod(upper / "tmp", 0o20000, 0)
    assert not other_roots.can_be_taken([upper, lower])
