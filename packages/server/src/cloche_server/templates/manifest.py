"""What is known of a finished template: one `manifest.json` beside its root, and how all of them are read.

    TEMPLATES/<build id>/manifest.json
    TEMPLATES/<build id>/rootfs/        unless it is made of layers, which the node keeps

A build writes both into a hidden folder and renames it, so whatever has a manifest is complete. The folder
of a build is open to root and the api's group only: a root holds set-user-id programs, which no local
account should reach.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from cloche_server.node.templates import DEFAULT_WARM
from cloche_wire.errors import Internal

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST_NAME = "manifest.json"


class Manifest(msgspec.Struct, frozen=True):
    """One finished build of a template."""

    template_id: str
    """20 of [a-z0-9], as clients see it."""
    build_id: str
    """A UUID; also the name of the build's folder."""
    name: str
    aliases: list[str]
    """Other names it can be asked for by."""
    cpu_count: int
    memory_mib: int
    created_at: datetime
    recipe_hash: str
    """Of everything the build was made from: the same hash needs no new build."""
    rootfs: str = "rootfs"
    """Folder of the root, relative to the manifest, unless it has `layers`."""
    layers: list[str] = []
    """Names of what it is made of, uppermost first; see `node.layers`."""
    default_user: str = "user"
    default_workdir: str = "/home/user"
    env: dict[str, str] = {}
    """Environment of every process of its sandboxes, below what the creator of a sandbox asks for."""
    isolation: str = ""
    """The driver that its sandboxes get where their creator asks for none; empty: the server's."""
    team_id: str = ""
    """Of the team that has built it and says who may use it; empty: everyone's."""
    warnings: list[str] = []
    """What its owner should know of the build, though it has succeeded: a sentence each."""
    start_cmd: str = ""
    """Runs in every sandbox from its beginning."""
    image: str = ""
    """The image that it is based on, by its digest; empty: none, or the base was a template."""
    ready_cmd: str = ""
    """Succeeds once the start command is so far."""
    warm: tuple[str, ...] = DEFAULT_WARM
    """Python modules that its sandboxes have imported before anybody asks for them."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """What a template that is made of this one lies on: a root of its own goes by the build's id."""
        return tuple(self.layers) or (self.build_id,)


def read(path: Path) -> Manifest:
    """Return the manifest in this file.

    Raises:
        Internal: The file is not one.
        FileNotFoundError: No such file.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise Internal(f"cannot read template: {path}: {error}") from error


def read_all(templates_dir: Path) -> list[Manifest]:
    """Return the manifests of all finished builds, oldest first; none when the folder does not exist."""
    found = [read(path) for path in templates_dir.glob(f"[!.]*/{MANIFEST_NAME}")]
    return sorted(found, key=lambda manifest: manifest.created_at)


def newest(templates_dir: Path, template_id: str) -> Manifest | None:
    """Return the latest finished build of one template."""
    builds = [manifest for manifest in read_all(templates_dir) if manifest.template_id == template_id]
    return builds[-1] if builds else None
