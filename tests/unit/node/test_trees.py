"""Trees that stand still: a copy is the same in all that counts, and a sum tells every change."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche_server.node import trees
from cloche_wire.errors import TooLarge

BY_LINK = pytest.mark.parametrize("by_link", [False, True], ids=["copied", "linked"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with one of everything that a sandbox can make."""
    root = tmp_path / "source"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "file").write_text("text")
    (root / "etc" / "file").chmod(0o4751)
    os.setxattr(root / "etc" / "file", "user.note", b"value")
    (root / "etc" / "again").hardlink_to(root / "etc" / "file")
    (root / "empty").touch()
    (root / "link").symlink_to("/etc/shadow")
    os.mkfifo(root / "pipe", 0o600)
    os.mknod(root / "gone", stat.S_IFCHR, 0)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 30)
        file.write(b"in the middle")
    (root / "etc").chmod(0o2750)
    os.utime(root / "etc", ns=(10**9, 2 * 10**9))
    return root


def shape(root: Path) -> dict[str, tuple[object, ...]]:
    """All that a sum does not say too: times, holes, links among names."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, int] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        number = inodes.setdefault(status.st_ino, len(inodes))
        found[str(path.relative_to(root))] = (status.st_mode, number, status.st_mtime_ns, status.st_size)
    return found


@BY_LINK
def test_copy_is_the_same_in_all_that_counts(source: Path, tmp_path: Path, by_link: bool) -> None:
    trees.copy(source, tmp_path / "target", by_link=by_link)
    assert trees.sum_of(tmp_path / "target") == trees.sum_of(source)
    assert shape(tmp_path / "target") == shape(source)
    assert (tmp_path / "target" / "sparse").lstat().st_blocks < 100
    is_same = (tmp_path / "target" / "sparse").samefile(source / "sparse")
    assert is_same is by_link


def test_whiteouts_and_what_hides_folders_come_along(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("attributes of the kernel's own need root")
    (tmp_path / "source" / "hiding").mkdir(parents=True)
    os.setxattr(tmp_path / "source" / "hiding", "trusted.overlay.opaque", b"y")
    trees.copy(tmp_path / "source", tmp_path / "target", by_link=False)
    assert os.getxattr(tmp_path / "target" / "hiding", "trusted.overlay.opaque") == b"y"


@pytest.mark.parametrize(
    "act",
    [
        lambda root: (root / "etc" / "file").write_text("texT"),
        lambda root: (root / "etc" / "file").chmod(0o4750),
        lambda root: os.setxattr(root / "etc" / "file", "user.note", b"other"),
        lambda root: (root / "empty").rename(root / "empty2"),
        lambda root: (root / "empty").write_bytes(b"\0"),
        lambda root: (root / "empty").unlink(),
        lambda root: (root / "more").mkdir(),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("/etc/shadov")),
        lambda root: ((root / "gone").unlink(), (root / "gone").touch()),
        lambda root: root.chmod(0o700),
        lambda root: os.pwrite(os.open(root / "sparse", os.O_WRONLY), b"x", (1 << 39) + 7),
        lambda root: os.truncate(root / "sparse", (1 << 40) + 1),
    ],
    ids=str,
)  # fmt: skip
def test_sum_tells_every_change(source: Path, act: Callable[[Path], object]) -> None:
    before = trees.sum_of(source)
    act(source)
    assert trees.sum_of(source).sha256 != before.sha256


def test_sum_is_the_same_whether_zeros_are_written_or_are_a_hole(tmp_path: Path) -> None:
    """A file system may make either of the other, when it writes out what was only set aside."""
    sums: list[str] = []
    for number, content in enumerate((bytes(300_000), b"")):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "file").write_bytes(content)
        with (root / "file").open("r+b") as file:
            file.truncate(300_000)
            file.seek(200_000)
            file.write(b"data")
        os.utime(root / "file", (number, number))
        sums.append(trees.sum_of(root).sha256)
    assert sums[0] == sums[1]


def test_names_and_contents_cannot_be_moved_into_each_other(tmp_path: Path) -> None:
    for number, (name, content) in enumerate({"ab": "c", "a": "bc"}.items()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(content)
    assert trees.sum_of(tmp_path / "0").sha256 != trees.sum_of(tmp_path / "1").sha256


@BY_LINK
def test_tree_that_is_too_wide_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_link: bool
) -> None:
    monkeypatch.setattr(trees, "MOST_ENTRIES", 10)
    (tmp_path / "source" / "below").mkdir(parents=True)
    for number in range(10):
        (tmp_path / "source" / "below" / str(number)).touch()
    with pytest.raises(TooLarge, match="10 files"):
        trees.sum_of(tmp_path / "source")
    with pytest.raises(TooLarge, match="10 files"):
        trees.copy(tmp_path / "source", tmp_path / "target", by_link=by_link)


@BY_LINK
def test_tree_that_is_too_deep_is_refused_and_no_descriptor_is_left(tmp_path: Path, by_link: bool) -> None:
    (tmp_path / "source" / "/".join("d" * 70)).mkdir(parents=True)
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(TooLarge, match="deeper"):
        trees.copy(tmp_path / "source", tmp_path / "target", by_link=by_link)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@BY_LINK
def test_paths_longer_than_the_kernel_takes_are_copied(tmp_path: Path, by_link: bool) -> None:
    """Names of 255 bytes, 30 folders deep, with two names for the file at the end."""
    (tmp_path / "source").mkdir()
    folder = os.open(tmp_path / "source", os.O_RDONLY)
    for _ in range(30):
        os.mkdir("n" * 255, dir_fd=folder)
        below = os.open("n" * 255, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(os.open("a", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.link("a", "b", src_dir_fd=folder, dst_dir_fd=folder)
    os.close(folder)
    trees.copy(tmp_path / "source", tmp_path / "target", by_link=by_link)
    assert trees.sum_of(tmp_path / "target") == trees.sum_of(tmp_path / "source")


def test_device_that_no_sandbox_makes_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("devices need root")
    (tmp_path / "source").mkdir()
    os.mknod(tmp_path / "source" / "memory", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    with pytest.raises(OSError, match="memory"):
        trees.copy(tmp_path / "source", tmp_path / "target", by_link=False)


def test_file_with_too_many_names_is_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object, **others: object) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", refuse)
    trees.copy(source, tmp_path / "target", by_link=True)
    monkeypatch.undo()
    assert trees.sum_of(tmp_path / "target").sha256 == trees.sum_of(source).sha256
