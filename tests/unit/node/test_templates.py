"""Manifests of templates are read once, and what is shown is what lies there."""

import json
from pathlib import Path

import pytest

from cloche_server.node.templates import Templates
from cloche_wire.errors import TemplateNotFound


def write(folder: Path, **manifest: object) -> Path:
    path = folder / "build" / "manifest.json"
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"rootfs": "rootfs"} | manifest))
    return new.replace(path)


def test_a_manifest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    templates = Templates(tmp_path)
    write(tmp_path, default_user="ann")
    first = templates.read("build")
    monkeypatch.setattr(Path, "read_bytes", None)
    assert templates.read("build") is first
    assert first.default_user == "ann"


def test_a_build_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    templates = Templates(tmp_path)
    write(tmp_path, default_user="ann")
    assert templates.read("build").default_user == "ann"
    write(tmp_path, default_user="bob")
    assert templates.read("build").default_user == "bob"


@pytest.mark.parametrize("content", [None, b"", b"{}", b"{"])
def test_a_build_that_is_gone_or_damaged_is_not_there_any_more(tmp_path: Path, content: bytes | None) -> None:
    templates = Templates(tmp_path)
    path = write(tmp_path)
    templates.read("build")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TemplateNotFound):
        templates.read("build")
    write(tmp_path, default_user="bob")
    assert templates.read("build").default_user == "bob"
