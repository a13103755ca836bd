"""The sandbox's name and the files of /etc that say where it is, as the node tells them after a restore.

Where the node can reach the sandbox's files it writes these itself. Behind a kernel of its own only we can.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from cloche_wire.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

_ETC = Path("/etc")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")


class HostIdentity(NamedTuple):
    """What `/init` says of it; empty where it says nothing."""

    files: Mapping[str, str]
    """Contents by name of the file."""
    hostname: str

    def show(self, folder: Path = _ETC) -> None:
        """Write the files and set the name. What cannot be done is warned of: it is a sandbox without."""
        if self.hostname:
            try:
                # SAFETY: the name of this UTS namespace, which is the sandbox's own.
                socket.sethostname(self.hostname)
            except OSError as error:
                log.warning("cannot set the host name: %s", error.strerror)
        for name, content in self.files.items():
            try:
                _replace(folder, name, content)
            except OSError as error:
                log.warning("cannot write %s: %s", folder / name, error.strerror)


def host_identity(settings: Mapping[str, object]) -> HostIdentity:
    """What a body of `/init` says in `etcFiles` and `hostname`.

    Raises:
        InvalidArgument: A field has the wrong type, or a name is none.
    """
    hostname = settings.get("hostname") or ""
    if not isinstance(hostname, str) or not (hostname == "" or _HOSTNAME.fullmatch(hostname)):
        raise InvalidArgument("not a host name: hostname")
    found = settings.get("etcFiles", {})
    if not isinstance(found, dict):
        raise InvalidArgument("not an object: etcFiles")
    files: dict[str, str] = {"hostname": hostname + "\n"} if hostname else {}
    for name, content in cast("dict[str, object]", found).items():
        if not _FILE_NAME.fullmatch(name):
            raise InvalidArgument(f"not the name of a file: {name[:80]}")
        if not isinstance(content, str):
            raise InvalidArgument(f"not a text: {name}")
        files[name] = content
    return HostIdentity(files, hostname)


def _replace(folder: Path, name: str, content: str) -> None:
    """Put a new file in the place of whatever has that name, but a folder."""
    within = os.open(folder, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)
    temporary = f".{name}.{secrets.token_hex(8)}"
    try:
        # SAFETY: the name may be a link of the tenant's, to a file or a device. It is never opened: a new
        # file takes its place.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o644, dir_fd=within), "w", encoding="utf-8") as file:
            file.write(content)
        try:
            os.rename(temporary, name, src_dir_fd=within, dst_dir_fd=within)
        except OSError:
            os.unlink(temporary, dir_fd=within)
            raise
    finally:
        os.close(within)
