"""Show a mount that others have too, such as a volume, at a folder of a root that is being assembled."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator

from cloche_server.isolation import overlay, syscalls
from cloche_server.isolation.launching.server import BadPath


def show(mount: int, root: str, path: str, ids: overlay.Ids) -> None:
    """Put a detached mount at `path` below `root`, its ids shifted to the sandbox's.

    Files in it keep the ids 0..65535 of the sandboxes' own view, so every sandbox sees the same owners.

    Args:
        mount: The mount, which stands nowhere yet.
        root: The assembled root, in a mount namespace of this process alone.
        path: Absolute and normal; folders that are missing are made.
        ids: Of the sandbox, whose root owns the folders made here.

    Raises:
        BadPath: A part of the path is a file or a link.
    """
    restrict(mount, ids)
    with folder_at(root, path, ids) as folder:
        # SAFETY: onto the descriptor of a folder that was reached without a link and without leaving the
        # root; no program of the tenant has run in it yet, so nobody can change it in between.
        syscalls.attach_mount(mount, folder)


def restrict(mount: int, ids: overlay.Ids) -> None:
    """Shift the ids of a detached mount to those of a sandbox, and take devices and setuid programs away."""
    # SAFETY: those of other sandboxes mean nothing here; the mount was seen by nobody.
    syscalls.map_ids(mount, ids.user_namespace, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)


@contextlib.contextmanager
def folder_at(root: str, path: str, ids: overlay.Ids) -> Generator[int]:
    """Open the folder at `path` below `root`; what is missing is made by the sandbox's root.

    Raises:
        BadPath: A part of the path is a file or a link.
    """
    with contextlib.ExitStack() as opened, overlay.acting_as(ids):
        folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, folder)
        for name in path.strip("/").split("/"):
            folder = _enter(folder, name, path)
            opened.callback(os.close, folder)
        yield folder


def _enter(folder: int, name: str, path: str) -> int:
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
        return syscalls.openat2(folder, name.encode(), os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_PLAIN)
    except NotADirectoryError:
        raise BadPath(f"cannot mount a volume at {path}: {name} is a file in the template") from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise BadPath(f"cannot mount a volume at {path}: {name} is a symbolic link") from None
