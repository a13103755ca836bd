"""File systems in files: what they take of the disk, and that they are never attached twice."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support import census
from tests.support.waiting import until

from cloche_server.isolation import loop_image

pytestmark = pytest.mark.needs("root", "loop")

SIZE = 32 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """In a folder with a name of its own, by which its device is found."""
    path = tmp_path / "vimage" / "image"
    path.parent.mkdir()
    yield path
    until(lambda: not list(census.loops([tmp_path])), within_s=10, what="no loop device")


def written(mount: int, name: str, size: int) -> None:
    descriptor = os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=mount)
    for _ in range(size >> 20):
        os.write(descriptor, b"x" * (1 << 20))
    os.fsync(descriptor)
    os.close(descriptor)


def taken(image: Path) -> int:
    return image.stat().st_blocks * 512


def test_a_sparse_image_takes_what_is_in_it_and_gives_it_back(image: Path) -> None:
    """Empty it takes little, and what is removed is punched out of the file."""
    loop_image.make(image, SIZE, 100, preallocate=False)
    empty = taken(image)
    assert empty < SIZE // 4
    mount = loop_image.mount(image)
    written(mount, "file", 8 << 20)
    assert taken(image) >= 8 << 20
    os.unlink("file", dir_fd=mount)
    os.close(mount)
    until(lambda: taken(image) < empty + (4 << 20), within_s=10, what="the space")


def test_a_preallocated_image_takes_all_and_keeps_it(image: Path) -> None:
    """A full disk of the host can then not break into its writes."""
    loop_image.make(image, SIZE, 100, preallocate=True)
    assert taken(image) >= SIZE
    mount = loop_image.mount(image)
    written(mount, "file", 8 << 20)
    os.unlink("file", dir_fd=mount)
    os.close(mount)
    until(lambda: not list(census.loops([image.parent.parent])), within_s=10, what="no loop device")
    assert taken(image) >= SIZE


def test_one_image_has_one_device_however_often_it_is_mounted(image: Path) -> None:
    """All mounts show the same file system, and it goes with the last of them."""
    loop_image.make(image, SIZE, 100, preallocate=False)
    mounts = [loop_image.mount(image)]
    with ThreadPoolExecutor(8) as threads:
        mounts += threads.map(loop_image.mount, [image] * 16)
    assert len({os.fstat(mount).st_dev for mount in mounts}) == 1
    assert len(list(census.loops([image.parent.parent]))) == 1
    written(mounts[0], "file", 1 << 20)
    assert os.stat("file", dir_fd=mounts[-1]).st_size == 1 << 20
    for mount in mounts:
        os.close(mount)


def test_a_mount_that_ends_at_once_can_be_made_again_and_again(image: Path) -> None:
    """The device that clears itself and the next one never meet: what was written is there."""
    loop_image.make(image, SIZE, 100, preallocate=False)
    for number in range(30):
        mount = loop_image.mount(image)
        os.close(os.open(f"file{number}", os.O_CREAT | os.O_WRONLY, dir_fd=mount))
        os.close(mount)
    mount = loop_image.mount(image)
    assert all(os.access(f"file{number}", os.F_OK, dir_fd=mount) for number in range(30))
    os.close(mount)
