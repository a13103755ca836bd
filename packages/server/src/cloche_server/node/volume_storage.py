"""What a volume is made of on this machine: a file system in a file, or a plain folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal, Protocol

from cloche_server import disk_space
from cloche_server.config import Volumes as VolumeSettings
from cloche_server.isolation import loop_image, syscalls

Kind = Literal["image", "none"]

_LEAST_FREE_BYTES = 64 << 20
"""What has to be free for the tables of a new file system, and some."""
_ROOT_MODE = 0o777
"""Of a new volume's root. Whoever has it mounted is of its team, and the usual user there is not root."""


class Storage(Protocol):
    """One way to keep a volume below a folder of its own."""

    def make(self, folder: Path) -> None:
        """Make an empty volume.

        Raises:
            OSError: The disk is full or broken.
            ClocheError: This machine lacks something; the message names it.
        """
        ...

    def mount(self, folder: Path) -> int:
        """Return a descriptor of a new mount of the volume's root, which stands nowhere.

        Raises:
            OSError: It is not there, or cannot be mounted.
            ClocheError: This machine lacks something.
        """
        ...


def storage_of(kind: Kind, settings: VolumeSettings) -> Storage:
    """Return the storage of that kind; the settings count for new volumes only."""
    return Images(settings) if kind == "image" else Folders()


class Images:
    """Each volume is a file system of its own in a file, on a loop device while it is in use (ADR 0008)."""

    def __init__(self, settings: VolumeSettings) -> None:
        """Take the limits of new volumes."""
        self._settings = settings

    def make(self, folder: Path) -> None:
        """See `Storage.make`."""
        size_bytes = self._settings.size_mib << 20
        needed = size_bytes if self._settings.preallocate else 0
        disk_space.require(folder, needed + _LEAST_FREE_BYTES, "a volume")
        image = folder / "image"
        loop_image.make(image, size_bytes, self._settings.files, preallocate=self._settings.preallocate)
        mount = loop_image.mount(image)
        try:
            # SAFETY: a file system made a moment ago, which nobody else has seen: nothing in it is a link.
            _open_to_all(mount)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir("lost+found", dir_fd=mount)
        finally:
            os.close(mount)

    def mount(self, folder: Path) -> int:
        """See `Storage.mount`."""
        return loop_image.mount(folder / "image")


class Folders:
    """Each volume is a plain folder without any limit, where an operator has chosen so."""

    def make(self, folder: Path) -> None:
        """See `Storage.make`."""
        files = folder / "files"
        files.mkdir()
        mount = os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _open_to_all(mount)
        finally:
            os.close(mount)

    def mount(self, folder: Path) -> int:
        """See `Storage.mount`."""
        # SAFETY: only root can enter the folders above; what lies in `files` is never followed from here.
        return syscalls.clone_mount(str(folder / "files"))


def _open_to_all(mount: int) -> None:
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    try:
        os.fchmod(root, _ROOT_MODE)
    finally:
        os.close(root)
