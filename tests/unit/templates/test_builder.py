"""Embedded templates: what they are made from, when they are made again, what stops a build early."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from cloche_server.config import Config
from cloche_server.templates import builder, host_settings, manifest, recipe
from cloche_server.templates.manifest import Manifest
from cloche_wire.errors import Internal, NotEnoughSpace, PermissionDenied, Unavailable

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB%d\n-----END CERTIFICATE-----"
_DEFAULT = recipe.code_interpreter()


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
    wanted = recipe.code_interpreter(host_settings.extra_certificates())
    made = _write(tmp_path, "a", datetime(2026, 1, 1, tzinfo=UTC), wanted.hash)
    said: list[str] = []
    assert builder.ensure(Config(templates=str(tmp_path)), wanted, said.append) == made
    assert said == []


def test_recipe_changes_with_the_authorities_of_the_machine() -> None:
    assert (
        recipe.code_interpreter((_CERTIFICATE % 1,)).hash != _DEFAULT.hash == recipe.code_interpreter().hash
    )


def test_recipe_changes_with_the_one_it_is_based_on() -> None:
    polyglot = recipe.polyglot()
    assert polyglot.base == _DEFAULT
    changed = polyglot._replace(base=_DEFAULT._replace(packages=("bash",)))
    assert polyglot.hash != changed.hash


def test_programs_are_told_of_the_system_bundle_only_where_the_host_has_authorities() -> None:
    assert "SSL_CERT_FILE" not in _DEFAULT.environment
    environment = recipe.code_interpreter((_CERTIFICATE % 1,)).environment
    assert environment["NODE_EXTRA_CA_CERTS"] == recipe.SYSTEM_BUNDLE


@pytest.mark.parametrize("known", recipe.embedded(), ids=lambda known: known.name)
def test_template_ids_have_the_shape_that_clients_expect(known: recipe.Recipe) -> None:
    assert len(known.template_id) == 20
    assert known.template_id.isalnum()


def test_embedded_templates_share_no_name() -> None:
    names = [name for known in recipe.embedded() for name in (known.template_id, known.name, *known.aliases)]
    assert len(names) == len(set(names))


def test_an_npm_archive_lies_where_the_registry_keeps_it() -> None:
    assert recipe.NpmPackage("@a/b", "1.0.0", "").path == "@a/b/-/b-1.0.0.tgz"
    assert recipe.NpmPackage("c", "2.0.0", "").path == "c/-/c-2.0.0.tgz"


def test_template_based_on_another_starts_from_its_newest_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe.polyglot()
    assert wanted.base is not None
    _write(tmp_path, "base-build", datetime(2026, 1, 1, tzinfo=UTC), wanted.base.hash)
    copied: list[list[str]] = []

    def note(build: object, title: str, command: list[str], **_: str) -> None:
        copied.append(command)
        raise Unavailable("far enough")

    monkeypatch.setattr(builder, "_check_prerequisites", lambda *_: None)
    monkeypatch.setattr(builder._Build, "_command", note)
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    with pytest.raises(Unavailable, match="far enough"):
        builder.ensure(Config(templates=str(tmp_path)), wanted, lambda _: None)
    copy = next(command for command in copied if command[0] == "cp")
    assert copy[2] == str(tmp_path / "base-build" / "rootfs")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "base-build"]


def test_full_disk_stops_the_build_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10, 9, 1))
    with pytest.raises(NotEnoughSpace, match="not enough disk space"):
        builder.ensure(Config(templates=str(tmp_path / "templates")), _DEFAULT, lambda _: None)
    assert not (tmp_path / "templates").exists()


def test_build_without_root_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied, match="needs root"):
        builder.ensure(Config(templates=str(tmp_path)), _DEFAULT, lambda _: None)


def test_missing_tool_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(Unavailable, match="not installed: mmdebstrap") as caught:
        builder.ensure(Config(templates=str(tmp_path)), _DEFAULT, lambda _: None)
    assert caught.value.hint == "apt-get install mmdebstrap"


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unavailable("mmdebstrap failed")

    monkeypatch.setattr(builder, "_check_prerequisites", lambda *_: None)
    monkeypatch.setattr(builder._Build, "_command", fail)
    monkeypatch.setattr(builder._Build, "_npm", lambda _: None)
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    with pytest.raises(Unavailable, match="mmdebstrap failed"):
        builder.ensure(Config(templates=str(tmp_path)), _DEFAULT, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_what_a_registry_breaks_off_is_fetched_once_more_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt ended with an error in the middle of a build that passed two minutes later."""
    tries: list[str] = []
    told: list[str] = []

    def fail_once(build: object, title: str, command: list[str], **_: str) -> str:
        tries.append(title)
        if title == "mmdebstrap" and tries.count(title) == 1:
            raise Unavailable("mmdebstrap failed with status 25:\nE: half a line")
        if title == "mmdebstrap":
            (Path(command[-4]) / "dev").mkdir(parents=True)
        return "[]"

    monkeypatch.setattr(builder, "_check_prerequisites", lambda *_: None)
    monkeypatch.setattr(builder._Build, "_command", fail_once)
    monkeypatch.setattr(builder._Build, "_npm", lambda _: None)
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    made = builder.ensure(Config(templates=str(tmp_path)), _DEFAULT, told.append)
    assert tries.count("mmdebstrap") == 2
    assert "  once more after: mmdebstrap failed with status 25:" in told
    assert manifest.newest(tmp_path, recipe.TEMPLATE_ID) == made
