"""Makes a template of a file that `template_export` has written: layers are sent, and applied in sandboxes.

The file is a stranger's. Here only its two kinds of members are read, and what they must be is checked; what
is in a layer is unpacked by the server, inside a sandbox, as with any image.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec

from cloche_server.cli.template_export import FORMAT, MANIFEST, Exported, ExportedLayer
from cloche_server.node.templates import DEFAULT_WARM
from cloche_server.templates.steps import LAYERS_ALONE, Description, Step
from cloche_wire.errors import InvalidArgument

if TYPE_CHECKING:
    from cloche_server.cli.remote import Remote

MOST_LAYERS = 100
_MANIFEST_BYTES = 4 << 20
_LAYER = re.compile(r"layers/\d{3}\.tar\Z")


class Archive(NamedTuple):
    """A file whose every byte was checked."""

    about: Exported
    tar: tarfile.TarFile


@contextmanager
def opened(path: Path) -> Generator[Archive]:
    """Open such a file, once all of it was read and compared with what it says of itself.

    Raises:
        InvalidArgument: It is none, damaged, or of a later version.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = {member.name: member for member in tar.getmembers()}
            about = _about(tar, members)
            for layer in about.layers:
                _check(tar, members, layer)
            yield Archive(about, tar)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise InvalidArgument(f"not a template: {path}: {error}") from error


def description(about: Exported) -> Description:
    """What is built: nothing but the layers, and how sandboxes begin."""
    env = [word for name, value in about.env.items() for word in (name, value.replace("$", r"\$"))]
    steps = [Step("LAYER", [layer.file], layer.sha256) for layer in about.layers]
    steps += [Step("ENV", env)] if env else []
    steps += [Step("USER", [about.user])] if about.user else []
    steps += [Step("WORKDIR", [about.workdir])] if about.workdir else []
    return Description(
        from_image=LAYERS_ALONE,
        steps=steps,
        start_cmd=about.start_cmd,
        ready_cmd=about.ready_cmd,
        isolation=about.isolation,
        preload=[name for name in about.preload if name not in DEFAULT_WARM],
    )


def send_layers(remote: Remote, template_id: str, archive: Archive) -> int:
    """Send the layers that the server has not got; how many bytes."""
    sent = 0
    for layer in archive.about.layers:
        link = remote.ask("GET", f"/templates/{template_id}/files/{layer.sha256}")
        if not link["present"]:
            remote.send(link["url"], _file(archive.tar, archive.tar.getmember(layer.file)), layer.size_bytes)
            sent += layer.size_bytes
    return sent


def _about(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> Exported:
    member = members.get(MANIFEST)
    if member is None or not member.isreg() or member.size > _MANIFEST_BYTES:
        raise InvalidArgument(f"not a template: there is no {MANIFEST} in it")
    try:
        about = msgspec.json.decode(_file(tar, member).read(), type=Exported)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"not a template: {error}") from error
    if about.format != FORMAT:
        raise InvalidArgument(f"a template of another version: {about.format[:80]!r}", hint=f"not {FORMAT!r}")
    if not 0 < len(about.layers) <= MOST_LAYERS:
        raise InvalidArgument(f"a template of {len(about.layers)} layers, of at most {MOST_LAYERS}")
    return about


def _check(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], layer: ExportedLayer) -> None:
    member = members.get(layer.file)
    if member is None or not member.isreg() or not _LAYER.match(layer.file):
        raise InvalidArgument(f"not a template: there is no layer {layer.file[:80]!r} in it")
    if member.size != layer.size_bytes:
        raise InvalidArgument(f"the template is damaged: {layer.file} has {member.size} bytes")
    if hashlib.file_digest(_file(tar, member), "sha256").hexdigest() != layer.sha256:
        raise InvalidArgument(f"the template is damaged: {layer.file} is not what was written")


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> io.BufferedReader:
    return cast("io.BufferedReader", tar.extractfile(member))
