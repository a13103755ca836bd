"""Where in a sandbox a volume may be shown."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from itertools import pairwise

from cloche_wire.errors import InvalidArgument

MAX_MOUNTS = 16
"""Volumes in one sandbox."""
_MAX_PATH_BYTES = 1024
_RESERVED = ("/proc", "/sys", "/dev", "/.cloche")


def check(paths: Sequence[str]) -> None:
    """Refuse paths that a sandbox could not have, or would be hurt by.

    Raises:
        InvalidArgument: The message says what is wrong.
    """
    if len(paths) > MAX_MOUNTS:
        raise InvalidArgument(f"too many volumes for one sandbox: {len(paths)} of at most {MAX_MOUNTS}")
    for path in paths:
        _check_one(path)
    ordered = sorted(f"{path}/" for path in paths)
    for path, following in pairwise(ordered):
        if path == following:
            raise InvalidArgument(f"two volumes at one path: {path[:-1]}")
        if following.startswith(path):
            raise InvalidArgument(f"a volume inside another one: {following[:-1]} lies in {path[:-1]}")


def _check_one(path: str) -> None:
    shown = repr(path[:200])
    if not path.startswith("/"):
        raise InvalidArgument(f"path of a volume is not absolute: {shown}")
    if any(ord(character) < 0x20 or character == "\x7f" for character in path):
        raise InvalidArgument(f"path of a volume holds a control character: {shown}")
    if len(path.encode(errors="replace")) > _MAX_PATH_BYTES:
        raise InvalidArgument(f"path of a volume is longer than {_MAX_PATH_BYTES} bytes")
    if any(len(name.encode(errors="replace")) > 255 for name in path.split("/")):
        raise InvalidArgument(f"path of a volume has a name longer than 255 bytes: {shown}")
    if path == "/" or path.startswith("//") or posixpath.normpath(path) != path:
        hint = "no '//', no '.' or '..', no '/' at the end, not '/' itself"
        raise InvalidArgument(f"path of a volume is not in its plain form: {shown}", hint=hint)
    if any(path == reserved or path.startswith(reserved + "/") for reserved in _RESERVED):
        raise InvalidArgument(f"no volume can be mounted at {shown}", hint=f"not in {', '.join(_RESERVED)}")
