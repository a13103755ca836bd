"""Where volumes may be shown."""

import pytest

from cloche_server import mount_paths
from cloche_wire.errors import InvalidArgument


@pytest.mark.parametrize("path", ["/data", "/mnt/a/b", "/home/user/x", "/procedure", "/devices", "/ä b"])
def test_a_plain_absolute_path_is_taken(path: str) -> None:
    mount_paths.check([path])


@pytest.mark.parametrize(
    "path",
    [
        "", "data", "./a", "/", "//a", "/a/", "/a//b", "/a/./b", "/a/../b", "/..", "/proc", "/proc/1", "/sys",
        "/sys/fs", "/dev", "/dev/shm", "/.cloche", "/.cloche/lib", "/a\0", "/a\nb", "/" + "a" * 256,
        "/" + "a/" * 600 + "b",
    ],
)  # fmt: skip
def test_any_other_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument):
        mount_paths.check([path])


@pytest.mark.parametrize("paths", [["/a", "/a"], ["/a/b", "/a"], ["/a", "/a-b", "/a/b/c"]])
def test_volumes_neither_share_a_path_nor_lie_in_each_other(paths: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        mount_paths.check(paths)


def test_neighbours_are_no_nest() -> None:
    mount_paths.check(["/a", "/a-b", "/a0", "/b/a"])


def test_there_may_be_16_and_no_more() -> None:
    mount_paths.check([f"/v{number}" for number in range(16)])
    with pytest.raises(InvalidArgument):
        mount_paths.check([f"/v{number}" for number in range(17)])
