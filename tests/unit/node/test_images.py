"""Images: a name means that all of it is there, and every byte is what was written."""

import asyncio
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tests.unit.node.conftest import BUILD_ID

from cloche_server.node import images as images_module
from cloche_server.node import layers as layers_module
from cloche_server.node.images import FILES, FileSum, Images, KeptLayer, Manifest
from cloche_server.node.layers import KEPT_PREFIX, Layer, Layers
from cloche_server.node.templates import Templates
from cloche_wire.errors import SnapshotNotFound, SnapshotUnusable

pytestmark = pytest.mark.anyio
FORMAT = "remembering 1"
MANIFEST = Manifest(FORMAT, BUILD_ID, "tree", "token")


def discard(path: Path) -> None:
    """At once, as the trash does in time."""
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path / "layers", Templates(tmp_path / "templates"), discard)


@pytest.fixture
def images(tmp_path: Path, layers: Layers) -> Images:
    return Images(tmp_path / "images", discard, layers)


async def made(images: Images, name: str = "a-1") -> Path:
    begun = images.begin(name)
    (begun / "pages.img").write_bytes(bytes(range(256)) * 64)
    (begun / "checkpoint.img").write_bytes(b"state")
    await images.commit(name, MANIFEST)
    return begun.with_name(name)


async def test_what_was_saved_is_opened(images: Images) -> None:
    folder = await made(images)
    path, manifest = await images.open("a-1", FORMAT)
    assert path == folder
    assert (manifest.access_token, manifest.size_bytes) == ("token", 256 * 64 + 5)
    assert set(manifest.files) == {"pages.img", "checkpoint.img"}


async def test_image_that_was_only_begun_has_no_name(images: Images) -> None:
    images.begin("a-1")
    assert "a-1" not in images
    with pytest.raises(SnapshotNotFound):
        await images.open("a-1", FORMAT)
    assert images.remove_unfinished() == 1
    assert images.names() == set()


async def test_abandoned_image_leaves_nothing(images: Images, tmp_path: Path) -> None:
    (images.begin("a-1") / "pages.img").write_bytes(b"half")
    images.abandon("a-1")
    images.abandon("a-1")
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize("file", ["pages.img", "checkpoint.img", "manifest"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "longer"])
async def test_damaged_image_is_refused_by_name(images: Images, file: str, damage: str) -> None:
    path = await made(images) / file
    content = bytearray(path.read_bytes())
    match damage:
        case "truncated":
            path.write_bytes(content[:-1])
        case "flipped":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "longer":
            path.write_bytes(content + b"x")
        case _:
            path.unlink()
    expected = SnapshotNotFound if (file, damage) == ("manifest", "missing") else SnapshotUnusable
    with pytest.raises(expected, match="a-1"):
        await images.open("a-1", FORMAT)


async def test_image_of_another_version_is_refused_and_both_are_named(images: Images) -> None:
    await made(images)
    with pytest.raises(SnapshotUnusable, match="remembering 1, and this is remembering 2"):
        await images.open("a-1", "remembering 2")


async def test_every_open_reads_all_of_it_again_unless_once_is_enough(images: Images) -> None:
    folder = await made(images)
    await images.open("a-1", FORMAT, checked_before=True)
    (folder / "pages.img").write_bytes(b"other")
    await images.open("a-1", FORMAT, checked_before=True)
    with pytest.raises(SnapshotUnusable):
        await images.open("a-1", FORMAT)


async def test_name_comes_after_everything_is_synced(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the machine finds no name whose content is not there."""
    synced: list[str] = []
    real = images_module.sync

    def noted(path: Path) -> None:
        synced.append(path.name)
        real(path)

    monkeypatch.setattr(images_module, "sync", noted)
    await made(images)
    assert synced == ["checkpoint.img", "pages.img", "manifest", "a-1.new", "images"]


async def test_removed_image_is_gone_and_may_be_removed_again(images: Images) -> None:
    await made(images)
    images.remove("a-1")
    images.remove("a-1")
    assert "a-1" not in images


async def test_those_who_ask_at_the_same_time_have_it_read_once(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await made(images)
    read: list[str] = []
    sum_of = images_module._sum  # pyright: ignore[reportPrivateUsage]

    def noted(path: Path, piece_bytes: int) -> FileSum:
        read.append(path.name)
        return sum_of(path, piece_bytes)

    monkeypatch.setattr(images_module, "_sum", noted)

    async def ask() -> None:
        said.append((await images.open("a-1", FORMAT))[0])

    said: list[Path] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(ask())
    assert said == [folder] * 5
    assert sorted(read) == ["checkpoint.img", "pages.img"]
    await images.open("a-1", FORMAT)
    assert len(read) == 4, "who asks later has it read again"


async def test_what_is_kept_for_now_is_neither_synced_nor_read_and_ends_with_the_process(
    images: Images, layers: Layers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(path: Path, *_: int) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(images_module, "sync", never)
    monkeypatch.setattr(images_module, "_sum", never)
    begun = images.begin("a-1")
    (begun / "pages.img").write_bytes(b"memory")
    assert images.keep("a-1", MANIFEST).size_bytes == len(b"memory")
    assert "a-1" in images
    path, manifest = await images.open("a-1", FORMAT)
    assert ((path / "pages.img").read_bytes(), manifest.access_token) == (b"memory", "token")
    after_a_crash = Images(tmp_path / "images", discard, layers)
    assert "a-1" not in after_a_crash
    with pytest.raises(SnapshotNotFound):
        await after_a_crash.open("a-1", FORMAT)
    assert after_a_crash.remove_unfinished() == 1
    assert list((tmp_path / "images").iterdir()) == []


async def test_what_was_kept_for_now_can_be_removed(images: Images, tmp_path: Path) -> None:
    images.begin("a-1")
    images.keep("a-1", MANIFEST)
    images.remove("a-1")
    images.remove("a-1")
    assert "a-1" not in images
    assert list((tmp_path / "images").iterdir()) == []


@pytest.mark.parametrize("place", [0, 999, 1000, 8191, 16_000, 16_383])
async def test_damage_to_any_piece_is_found(
    images: Images, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(images_module, "_PIECE_BYTES", 1000)
    path = await made(images) / "pages.img"
    await images.open("a-1", FORMAT)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(SnapshotUnusable, match=r"pages\.img is not what was written"):
        await images.open("a-1", FORMAT)


async def test_pieces_that_have_changed_places_are_found(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "_PIECE_BYTES", 1000)
    path = await made(images) / "pages.img"
    content = path.read_bytes()
    path.write_bytes(content[1000:2000] + content[:1000] + content[2000:])
    with pytest.raises(SnapshotUnusable):
        await images.open("a-1", FORMAT)


async def test_image_of_an_earlier_version_is_opened(images: Images, tmp_path: Path) -> None:
    """Its hashes are of whole files, and nothing says so."""
    content = b"memory" * 1000
    folder = tmp_path / "images" / "a-1"
    folder.mkdir()
    (folder / "pages.img").write_bytes(content)
    files = {"pages.img": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    said = {"format": FORMAT, "build_id": BUILD_ID, "runtime_tree": "tree", "files": files}
    manifest = json.dumps(said).encode()
    (folder / "manifest").write_bytes(hashlib.sha256(manifest).hexdigest().encode() + b"\n" + manifest)
    await images.open("a-1", FORMAT)
    (folder / "pages.img").write_bytes(content[:-1] + b"x")
    with pytest.raises(SnapshotUnusable):
        await images.open("a-1", FORMAT)


# --- of layers


def kept(layers: Layers, text: str) -> Layer:
    name = layers.begin(KEPT_PREFIX)
    layers.begun(name).mkdir()
    (layers.begun(name) / "file").write_text(text)
    return layers.commit(name, "team", 0, 1, is_synced=False)


async def of_layers(images: Images, *layers: Layer) -> None:
    images.begin("a-1")
    named = tuple(KeptLayer(one.name, one.sha256, 100) for one in layers)
    await images.commit("a-1", Manifest(FILES, BUILD_ID, "tree", layers=named))


async def test_image_of_layers_is_for_every_driver_and_counts_what_they_take(
    images: Images, layers: Layers
) -> None:
    sealed = [layers.seal(kept(layers, text).name) for text in ("upper", "lower")]
    await of_layers(images, *sealed)
    for image_format in (FORMAT, ""):
        _, manifest = await images.open("a-1", image_format)
        assert [one.name for one in manifest.layers] == [one.name for one in sealed]
        assert manifest.size_bytes == 200
    assert [one.layers for one in images.manifests()] == [manifest.layers]


@pytest.mark.parametrize("damage", ["changed", "gone"])
async def test_image_of_a_layer_that_is_not_what_was_written_is_refused_by_name(
    images: Images, layers: Layers, damage: str
) -> None:
    sealed = layers.seal(kept(layers, "text").name)
    await of_layers(images, sealed)
    (folder,) = layers.folders([sealed.name])
    if damage == "gone":
        layers.remove(sealed.name)
    else:
        (folder / "file").write_text("texT")
    with pytest.raises(SnapshotUnusable, match=f"a-1 is damaged: {sealed.name}"):
        await images.open("a-1", "")


async def test_layer_gets_its_sum_when_it_is_needed_and_then_keeps_it(layers: Layers) -> None:
    layer = kept(layers, "text")
    assert layer.sha256 == ""
    sealed = layers.seal(layer.name)
    assert layers.holds(layer.name, sealed.sha256)
    assert layers.about(layer.name) == sealed == layers.seal(layer.name)


async def test_layers_are_on_disk_before_the_image_that_names_them_has_its_name(
    images: Images, layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []

    def noted(folder: Path) -> None:
        synced.append((folder.name, "a-1" in images))

    monkeypatch.setattr(layers_module, "sync_all_below", noted)
    layer = layers.seal(kept(layers, "text").name)
    assert synced == []
    await of_layers(images, layer)
    assert synced == [("layers", False)]
    assert "a-1" in images
