"""Which builds of a template may go."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cloche_server.templates import superseded
from cloche_server.templates.manifest import MANIFEST_NAME, Manifest


def finish(folder: Path, build_id: str, day: int, template_id: str = "a" * 20) -> None:
    build = Manifest(
        template_id=template_id, build_id=build_id, name="n", aliases=[], cpu_count=1, memory_mib=128,
        created_at=datetime(2026, 1, day, tzinfo=UTC), recipe_hash=build_id,
    )  # fmt: skip
    (folder / build_id / "rootfs").mkdir(parents=True)
    (folder / build_id / MANIFEST_NAME).write_bytes(msgspec.json.encode(build))


def test_newest_build_of_each_template_stays_and_older_ones_go(tmp_path: Path) -> None:
    finish(tmp_path, "new", 3)
    finish(tmp_path, "old", 1)
    finish(tmp_path, "older-but-the-only-one", 1, template_id="b" * 20)
    assert superseded.remove(tmp_path, ()) == ["old"]
    assert {path.name for path in tmp_path.iterdir()} == {"new", "older-but-the-only-one"}


def test_build_that_was_half_removed_goes_too(tmp_path: Path) -> None:
    finish(tmp_path, "new", 3)
    (tmp_path / ".superseded-old" / "rootfs").mkdir(parents=True)
    assert superseded.remove(tmp_path, ()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


def test_build_under_a_running_sandbox_stays(tmp_path: Path) -> None:
    finish(tmp_path, "new", 3)
    finish(tmp_path, "used", 1)
    assert superseded.remove(tmp_path, {"used"}) == []
    assert (tmp_path / "used" / "rootfs").is_dir()
