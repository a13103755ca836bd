"""What is told about one file, folder or link; every function here runs inside `acting_as`."""

from __future__ import annotations

import os
import stat

from cloche_agent.filesystem.paths import shown
from cloche_agent.users import group_name, user_name
from cloche_wire.messages.filesystem import EntryInfo, FileType
from cloche_wire.messages.timestamp import Timestamp

METADATA_PREFIX = "user.e2b."
"""Namespace of upload metadata among the extended attributes: 246 more bytes make the kernel's 255."""

_KIND_LETTERS = {
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "L",
    stat.S_IFBLK: "D",
    stat.S_IFCHR: "Dc",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "S",
}
_BIT_LETTERS = ((stat.S_ISUID, "u"), (stat.S_ISGID, "g"), (stat.S_ISVTX, "t"))


def describe(path: str, *, with_metadata: bool = True) -> EntryInfo:
    """The entry at `path`, links not followed.

    Of a link, `type` and `mode` are its target's and `symlink_target` is the resolved path; `is_symlink`
    stays unset: the clients of before the field, ours and the JavaScript one read `type`, and with the field
    set the Python client would answer SYMLINK where all of them answer what the link leads to (wire.md 3.3).

    Raises:
        OSError: There is nothing, or no right to look.
    """
    found = os.lstat(path)
    target: str | None = None
    behind: os.stat_result | None = found
    if stat.S_ISLNK(found.st_mode):
        target = os.path.realpath(path)
        behind = _stat(path)
    return EntryInfo(
        name=shown(os.path.basename(path)) or "/",  # noqa: PTH119
        type=_type(behind),
        path=shown(path),
        size=found.st_size,
        mode=behind.st_mode & 0o777 if behind else 0,
        permissions=_permissions(found.st_mode),
        owner=user_name(found.st_uid),
        group=group_name(found.st_gid),
        modified_time=Timestamp.from_ns(found.st_mtime_ns),
        symlink_target=None if target is None else shown(target),
        metadata=read_metadata(path) if with_metadata and behind else {},
    )


def read_metadata(path: str | int) -> dict[str, str]:
    """Metadata that uploads left at `path`; empty where the file system holds none."""
    try:
        names = os.listxattr(path)
        return {
            name.removeprefix(METADATA_PREFIX): os.getxattr(path, name).decode("latin-1")
            for name in names
            if name.startswith(METADATA_PREFIX)
        }
    except OSError:
        return {}


def replace_metadata(descriptor: int, metadata: dict[str, str]) -> None:
    """Make `metadata` the only metadata of an open file.

    Raises:
        OSError: The file system holds no extended attributes, or not as many.
    """
    for name in read_metadata(descriptor):
        if name not in metadata:
            os.removexattr(descriptor, METADATA_PREFIX + name)
    for name, value in metadata.items():
        os.setxattr(descriptor, METADATA_PREFIX + name, value.encode("latin-1"))


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError:
        return None


def _type(found: os.stat_result | None) -> FileType:
    if found is None:
        return FileType.FILE_TYPE_UNSPECIFIED
    if stat.S_ISDIR(found.st_mode):
        return FileType.FILE_TYPE_DIRECTORY
    return FileType.FILE_TYPE_FILE if stat.S_ISREG(found.st_mode) else FileType.FILE_TYPE_UNSPECIFIED


def _permissions(mode: int) -> str:
    """`ls -l` in the spelling of Go, which the clients know: `L` for links, the sticky bit in front."""
    letters = _KIND_LETTERS.get(stat.S_IFMT(mode), "")
    letters += "".join(letter for bit, letter in _BIT_LETTERS if mode & bit)
    bits = "".join(letter if mode & (0o400 >> place) else "-" for place, letter in enumerate("rwxrwxrwx"))
    return (letters or "-") + bits
