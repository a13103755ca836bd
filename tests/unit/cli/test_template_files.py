"""Templates as files: what one holds, and which files are refused before anything is sent."""

import hashlib
import io
import os
import stat
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from cloche_server.cli import template_export, template_import
from cloche_server.cli.template_export import FORMAT, Exported, ExportedLayer
from cloche_server.templates.manifest import Manifest
from cloche_server.templates.steps import LAYERS_ALONE, Step, check, expand
from cloche_wire.errors import InvalidArgument, NotEnoughSpace

MADE = Manifest(
    "t" * 20, "b", "mine", [], 4, 512, datetime(2026, 1, 1, tzinfo=UTC), "", layers=["upper", "lower"],
    default_user="worker", default_workdir="/srv", env={"PRICE": "5$", "A": "b"}, start_cmd="serve",
    ready_cmd="true", warm=("numpy", "polars"), isolation="gvisor",
)  # fmt: skip
LAYER = b"a layer"


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two layers, uppermost first."""
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    (lower / "data").mkdir(parents=True)
    (lower / "data" / "file").write_text("content")
    os.link(lower / "data" / "file", lower / "data" / "same")
    (lower / "data" / "file").chmod(0o4755)
    (lower / "link").symlink_to("/nowhere")
    os.mkfifo(lower / "pipe")
    upper.mkdir()
    (upper / "empty").mkdir(mode=0o1777)
    return [upper, lower]


def test_a_file_is_plain_tar_and_json(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    written = template_export.export(MADE, folders, path)
    assert (written.layers, written.size_bytes) == (2, path.stat().st_size)
    with template_import.opened(path) as archive:
        assert [layer.file for layer in archive.about.layers] == ["layers/000.tar", "layers/001.tar"]
        with tarfile.open(fileobj=archive.tar.extractfile("layers/000.tar")) as lower:
            assert lower.getnames() == ["data", "data/file", "data/same", "link", "pipe"]
            assert stat.S_IMODE(lower.getmember("data/file").mode) == 0o4755
            assert lower.getmember("data/same").linkname == "data/file"
            assert lower.getmember("link").linkname == "/nowhere"
            assert lower.getmember("pipe").isfifo()
        description = template_import.description(archive.about)
    check(description)
    assert [step.kind for step in description.steps] == ["LAYER", "LAYER", "ENV", "USER", "WORKDIR"]
    assert [expand(word, {}) for word in description.steps[2].args] == ["PRICE", "5$", "A", "b"]
    assert (description.start_cmd, description.ready_cmd) == ("serve", "true")
    assert (description.preload, description.isolation) == (["polars"], "gvisor")
    assert description.from_image == LAYERS_ALONE


def test_what_cannot_be_written_leaves_no_file(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(NotEnoughSpace):
        template_export.export(MADE, [tmp_path / "gone"], tmp_path / "out.tar")
    assert not [path for path in tmp_path.iterdir() if "out.tar" in path.name]


def archive(path: Path, about: bytes, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, content in (*members, (tarfile.TarInfo("manifest.json"), about)):
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def described(*layers: ExportedLayer, version: str = FORMAT) -> bytes:
    return msgspec.json.encode(Exported(version, "mine", list(layers), 2, 512, "user", "/", {}))


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


GOOD = ExportedLayer("layers/000.tar", hashlib.sha256(LAYER).hexdigest(), len(LAYER))
OUTSIDE = msgspec.structs.replace(GOOD, file="../x")
MEMBER = (tarfile.TarInfo("layers/000.tar"), LAYER)


@pytest.mark.parametrize(
    ("about", "members", "reason"),
    [
        (b"{", [MEMBER], "not a template"),
        (described(GOOD, version="cloche-template 2"), [MEMBER], "another version"),
        (described(), [], "0 layers"),
        (described(*[GOOD] * 101), [MEMBER], "101 layers"),
        (described(GOOD), [], "no layer"),
        (described(GOOD), [(link("layers/000.tar"), b"")], "no layer"),
        (described(OUTSIDE), [(tarfile.TarInfo("../x"), LAYER)], "no layer"),
        (described(GOOD), [(tarfile.TarInfo("layers/000.tar"), b"A LAYER")], "damaged"),
        (described(msgspec.structs.replace(GOOD, size_bytes=8)), [MEMBER], "damaged"),
    ],
)  # fmt: skip
def test_what_is_no_whole_template_is_refused(
    tmp_path: Path, about: bytes, members: list[tuple[tarfile.TarInfo, bytes]], reason: str
) -> None:
    path = archive(tmp_path / "in.tar", about, *members)
    with pytest.raises(InvalidArgument, match=reason), template_import.opened(path):
        pass


def test_a_file_that_ends_early_is_refused(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    template_export.export(MADE, folders, path)
    for size in (0, 100, 700, path.stat().st_size // 2):
        part = tmp_path / f"part-{size}"
        part.write_bytes(path.read_bytes()[:size])
        with pytest.raises(InvalidArgument), template_import.opened(part):
            pass


def test_a_layer_step_names_its_archive() -> None:
    with pytest.raises(InvalidArgument, match="filesHash"):
        check(template_import.Description(from_image=LAYERS_ALONE, steps=[Step("LAYER", [], "short")]))
