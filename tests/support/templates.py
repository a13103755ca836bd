"""Templates for one test server: the finished builds of this machine, also under a name of the reader's."""

import uuid
from pathlib import Path

import msgspec

from cloche_server.templates import recipe
from cloche_server.templates.manifest import MANIFEST_NAME, Manifest, read_all
from tests.support.capabilities import templates_folder

READERS_OWN = "your_template_id"
"""What the user's document calls a template that its reader has made."""


def link(folder: Path) -> Path:
    """Fill the folder with manifests that lead to the real roots, and return it."""
    source = templates_folder()
    for build in read_all(source):
        rootfs = str(source / build.build_id / build.rootfs)
        _write(folder, msgspec.structs.replace(build, rootfs=rootfs))
        if build.template_id != recipe.TEMPLATE_ID:
            continue
        own = {"template_id": "yourtemplate00000000", "build_id": str(uuid.uuid4()), "aliases": []}
        _write(folder, msgspec.structs.replace(build, rootfs=rootfs, name=READERS_OWN, **own))
    return folder


def _write(folder: Path, build: Manifest) -> None:
    (folder / build.build_id).mkdir(parents=True)
    (folder / build.build_id / MANIFEST_NAME).write_bytes(msgspec.json.encode(build))
