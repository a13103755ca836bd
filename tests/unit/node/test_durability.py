"""What is said to be there is on disk: first what it holds, then its name."""

from pathlib import Path

import pytest

from cloche_server.isolation import syscalls
from cloche_server.node import layers, publishing
from cloche_server.node.durability import sync_all_below
from cloche_server.node.layers import Layers
from cloche_server.node.templates import Templates

Seen = list[tuple[str, bool]]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Every folder and file that is synced, and whether it had something in it then."""
    seen: Seen = []

    def note(path: Path) -> None:
        seen.append((path.name, any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0))

    monkeypatch.setattr(layers, "sync", note)
    monkeypatch.setattr(layers, "sync_all_below", note)
    monkeypatch.setattr(publishing, "sync", note)
    return seen


def test_a_layer_is_on_disk_before_it_has_its_name(tmp_path: Path, synced: Seen) -> None:
    kept = Layers(tmp_path / "layers", Templates(tmp_path), Path.rmdir)
    name = kept.begin()
    kept.begun(name).mkdir()
    kept.commit(name, "team", 1, 1)
    assert synced == [(f"{name}.new", True), ("layers", True)]
    assert kept.all()[0].name == name


def test_a_layer_that_cannot_reach_the_disk_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(syscalls, "syncfs", fail)
    kept = Layers(tmp_path / "layers", Templates(tmp_path), Path.rmdir)
    name = kept.begin()
    with pytest.raises(OSError, match="No space"):
        kept.commit(name, "team", 1, 1)
    assert kept.all() == []


def test_a_build_is_on_disk_before_it_has_its_name(
    tmp_path: Path, synced: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: object) -> None:
        """A test that is not root gives nothing away."""

    monkeypatch.setattr(publishing.os, "chown", leave)
    publishing.write(tmp_path, "build", b"{}")
    assert synced == [("manifest.json", True), (".building-build", True), (tmp_path.name, True)]


def test_a_file_system_is_synced_by_one_of_its_folders(tmp_path: Path) -> None:
    sync_all_below(tmp_path)
    with pytest.raises(NotADirectoryError):
        sync_all_below(Path(__file__))
