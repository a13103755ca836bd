"""From a fetched image to a root: its layers, applied inside sandboxes over the one below all of them."""

from __future__ import annotations

from cloche_server.node import builds, imported_layers
from cloche_server.node.machine import Machine
from cloche_server.node.pulling import pulls
from cloche_server.node.pulling.messages import ApplyLayer, ImageRoot

_ROOT_NAME = "layer-" + "0" * 32
_ACCOUNTS = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}


def root(machine: Machine) -> ImageRoot:
    """Have the layer below the lowest of every image: the agent works for accounts, and a root has one.

    Raises:
        OSError: The disk is full.
    """
    if machine.layers.has(_ROOT_NAME):
        return ImageRoot(_ROOT_NAME)
    machine.layers.begin(name=_ROOT_NAME)
    files = machine.layers.begun(_ROOT_NAME)
    for folder in (files, files / "etc", files / "root"):
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
    for name, text in _ACCOUNTS.items():
        (files / name).write_text(text)
        (files / name).chmod(0o644)
    size = sum(map(len, _ACCOUNTS.values()))
    return ImageRoot(machine.layers.commit(_ROOT_NAME, "", size, 4).name)


async def apply(machine: Machine, request: ApplyLayer) -> None:
    """Apply one layer inside a build's sandbox, as `layer_extraction` does.

    Raises:
        ClocheError: See `messages`.
    """
    live = builds.find(machine, request.sandbox_id)
    descriptor = pulls.open_layer(machine, request.pull_id, request.digest)
    what = f"layer {request.digest[:19]} of the image"
    await imported_layers.apply_opened(machine, live, descriptor, request, what)
