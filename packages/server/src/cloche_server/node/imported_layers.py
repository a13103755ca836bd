"""Layers that were made elsewhere, of a template's file or an image, applied inside a build's sandbox."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cloche_server.node import builds, layer_extraction, strange_files, threads
from cloche_server.node.build_messages import ApplyUpload
from cloche_server.node.machine import Live, Machine
from cloche_server.node.pulling.messages import ApplyLayer
from cloche_wire.errors import InvalidArgument

_PROGRAM = Path(layer_extraction.__file__).read_text()


async def apply(machine: Machine, request: ApplyUpload) -> None:
    """Apply an uploaded layer as `layer_extraction` does, once every byte of it was checked.

    Raises:
        ClocheError: See `build_messages`.
    """
    live = builds.find(machine, request.sandbox_id)
    descriptor = strange_files.open_file(machine.config.uploads_dir, request.upload)
    try:
        found = await threads.in_thread(_sum, descriptor)
        if found != request.sha256:
            raise InvalidArgument(f"the layer is not what it should be: sha256 {found[:12]}...")
    except BaseException:
        os.close(descriptor)
        raise
    await apply_opened(machine, live, descriptor, request, f"layer {request.sha256[:12]}")


async def apply_opened(
    machine: Machine, live: Live, descriptor: int, bounds: ApplyUpload | ApplyLayer, what: str
) -> None:
    """Apply a layer that lies in an open file, which is closed.

    Raises:
        ClocheError: As `builds.unpack`.
    """
    asked = (str(bounds.max_bytes), str(bounds.max_entries))
    await builds.unpack(machine, live, descriptor, _PROGRAM, asked, what)


def _sum(descriptor: int) -> str:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)  # the offset is the descriptor's own too
    return found
