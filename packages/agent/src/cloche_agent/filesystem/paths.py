"""From the path in a request to an absolute path, and from the kernel's errors to ours."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloche_wire.errors import (
    ClocheError,
    Conflict,
    Internal,
    InvalidArgument,
    NotEnoughSpace,
    PathNotFound,
    PermissionDenied,
    ResourceExhausted,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from cloche_agent.users import User

_LONGEST_PATH_BYTES = 4095


def resolve(path: str, user: User, default_workdir: str | None) -> str:
    """Absolute form of a path from a request, `.` and `..` taken out by text as E2B does.

    Empty is the default folder, else the home; `~` is the home; anything else that is relative lies under the
    home.

    Raises:
        InvalidArgument: A null byte, a name that is no text, too long, or `~name`.
    """
    if "\0" in path:
        raise InvalidArgument("null byte in path")
    if not path:
        path = default_workdir or user.home
    if path == "~" or path.startswith("~/"):
        path = user.home + path[1:]
    elif path.startswith("~"):
        raise InvalidArgument(f"cannot expand home of another user: {path}")
    absolute = os.path.normpath(os.path.join("/", user.home, path))  # noqa: PTH118 - Path would keep `..`
    if absolute.startswith("//"):
        absolute = absolute[1:]
    try:
        length = len(os.fsencode(absolute))
    except UnicodeEncodeError as error:
        raise InvalidArgument("path is not valid text") from error
    if length > _LONGEST_PATH_BYTES:
        raise InvalidArgument("path is too long")
    return absolute


def shown(name: str) -> str:
    """A name fit for JSON: bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


@contextmanager
def explained(path: str) -> Generator[None]:
    """Turn an OSError of the block, which works on `path`, into an error of the wire.

    Raises:
        PathNotFound, InvalidArgument, PermissionDenied, NotEnoughSpace, Conflict, ResourceExhausted,
        Internal.
    """
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


def _explain(error: OSError, path: str) -> ClocheError:
    reason = (error.strerror or "unknown error").lower()
    path = shown(path)
    match error.errno:
        case errno.ENOENT:
            return PathNotFound(f"path '{path}' does not exist")
        case errno.EISDIR:
            return InvalidArgument(f"path '{path}' is a directory")
        case errno.ENOTDIR | errno.EEXIST:
            return InvalidArgument(f"a part of path '{path}' is not a directory")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionDenied(f"no permission for path '{path}': {reason}")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return NotEnoughSpace(f"not enough space for path '{path}': {reason}")
        case errno.ENAMETOOLONG | errno.ELOOP | errno.EINVAL | errno.ENXIO | errno.ENODEV | errno.ENOTSUP:
            return InvalidArgument(f"cannot use path '{path}': {reason}")
        case errno.EBUSY | errno.ETXTBSY:
            return Conflict(f"path '{path}' is in use: {reason}")
        case errno.EMFILE | errno.ENFILE | errno.ENOMEM:
            return ResourceExhausted(f"cannot use path '{path}': {reason}")
        case _:
            return Internal(f"cannot use path '{path}': {reason}")
