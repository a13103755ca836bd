"""The default template: what it is made from, when it is made again, what stops a build early."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from cloche_server.config import Config
from cloche_server.templates import default, host_settings, manifest, recipe
from cloche_server.templates.manifest import Manifest
from cloche_server.templates.recipe import Recipe
from cloche_wire.errors import Internal, NotEnoughSpace, PermissionDenied, Unavailable

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB%d\n-----END CERTIFICATE-----"


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def _write(folder: Path, build_id: str, created_at: datetime, recipe_hash: str = "0") -> Manifest:
    made = Manifest(
        template_id=recipe.TEMPLATE_ID,
        build_id=build_id,
        name=recipe.NAME,
        aliases=["base"],
        cpu_count=2,
        memory_mib=2048,
        created_at=created_at,
        recipe_hash=recipe_hash,
    )
    (folder / build_id).mkdir(parents=True)
    (folder / build_id / "manifest.json").write_bytes(msgspec.json.encode(made))
    return made


def test_newest_build_of_a_template_wins(tmp_path: Path) -> None:
    _write(tmp_path, "b", datetime(2026, 1, 2, tzinfo=UTC))
    old = _write(tmp_path, "a", datetime(2026, 1, 1, tzinfo=UTC))
    found = manifest.newest(tmp_path, recipe.TEMPLATE_ID)
    assert found is not None
    assert found.build_id == "b"
    assert manifest.read_all(tmp_path)[0] == old


def test_folder_of_a_running_build_is_no_template(tmp_path: Path) -> None:
    _write(tmp_path, ".building-a", datetime(2026, 1, 1, tzinfo=UTC))
    assert manifest.read_all(tmp_path) == []
    assert manifest.newest(tmp_path / "missing", recipe.TEMPLATE_ID) is None


def test_broken_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(Internal, match=r"manifest\.json"):
        manifest.read(tmp_path / "manifest.json")


def test_finished_template_with_the_same_recipe_is_used_as_it_is(tmp_path: Path) -> None:
    wanted = Recipe(host_settings.extra_certificates())
    made = _write(tmp_path, "a", datetime(2026, 1, 1, tzinfo=UTC), wanted.hash)
    said: list[str] = []
    assert default.ensure(Config(templates=str(tmp_path)), said.append) == made
    assert said == []


def test_recipe_changes_with_the_authorities_of_the_machine() -> None:
    assert Recipe((_CERTIFICATE % 1,)).hash != Recipe().hash == Recipe().hash


def test_programs_are_told_of_the_system_bundle_only_where_the_host_has_authorities() -> None:
    assert "SSL_CERT_FILE" not in Recipe().environment
    environment = Recipe((_CERTIFICATE % 1,)).environment
    assert environment["NODE_EXTRA_CA_CERTS"] == recipe.SYSTEM_BUNDLE


def test_template_id_has_the_shape_that_clients_expect() -> None:
    assert len(recipe.TEMPLATE_ID) == 20
    assert recipe.TEMPLATE_ID.isalnum()


def test_full_disk_stops_the_build_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10, 9, 1))
    with pytest.raises(NotEnoughSpace, match="not enough disk space"):
        default.ensure(Config(templates=str(tmp_path / "templates")), lambda _: None)
    assert not (tmp_path / "templates").exists()


def test_build_without_root_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied, match="needs root"):
        default.ensure(Config(templates=str(tmp_path)), lambda _: None)


def test_missing_tool_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(Unavailable, match="not installed: mmdebstrap") as caught:
        default.ensure(Config(templates=str(tmp_path)), lambda _: None)
    assert caught.value.hint == "apt-get install mmdebstrap"


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unavailable("mmdebstrap failed")

    monkeypatch.setattr(default, "_check_prerequisites", lambda _: None)
    monkeypatch.setattr(default._Build, "_command", fail)
    monkeypatch.setattr(default._Build, "_npm", lambda _: None)
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    with pytest.raises(Unavailable, match="mmdebstrap failed"):
        default.ensure(Config(templates=str(tmp_path)), lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
