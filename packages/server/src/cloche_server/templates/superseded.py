"""Builds that nothing needs any more: a newer one has taken their place, and no sandbox stands on them."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from cloche_server.templates import manifest

_HIDDEN = ".superseded-"


def remove(folder: Path, in_use: Collection[str]) -> list[str]:
    """Remove superseded builds and return their ids.

    Requires: the folder is this server's own, and none of its sandboxes is being created.
    Leaves: the newest build of every template, those in use, those that others are made of, and all that
    teams have built: tags lead to them. A build is first renamed, so none is half there; what a killed run
    left of one is removed too.

    Args:
        folder: The templates folder.
        in_use: Build ids that running sandboxes have as their lower layer: it must not change under them.
    """
    builds = manifest.read_all(folder)
    newest = {build.template_id: build.build_id for build in builds}  # oldest first, so the last one stays
    needed = {layer for build in builds for layer in build.layers}.union(in_use)
    removed = [
        build.build_id
        for build in builds
        if not build.team_id and build.build_id not in needed and build.build_id != newest[build.template_id]
    ]
    for build_id in removed:
        (folder / build_id).rename(folder / f"{_HIDDEN}{build_id}")
    for hidden in folder.glob(f"{_HIDDEN}*"):
        shutil.rmtree(hidden)
    return removed
