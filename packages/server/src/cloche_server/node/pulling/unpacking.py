"""From a fetched image to a root: layers applied inside sandboxes, and what all templates have."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec

from cloche_server.link import Event
from cloche_server.node import base_preparation, builds, layer_extraction
from cloche_server.node.build_messages import BuildExited, BuildLine
from cloche_server.node.build_programs import Program
from cloche_server.node.machine import Machine
from cloche_server.node.pulling import pulls
from cloche_server.node.pulling.messages import ApplyLayer, ImageRoot, PrepareBase, Prepared
from cloche_wire.errors import InvalidArgument

_LAYER = Path(layer_extraction.__file__).read_text()
_PREPARATION = Path(base_preparation.__file__).read_text()
_ROOT_NAME = "layer-" + "0" * 32
_ACCOUNTS = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}
_OUTPUT_BYTES = 64 << 20


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
    asked = (str(request.max_bytes), str(request.max_entries))
    await builds.unpack(machine, live, descriptor, _LAYER, asked, f"layer {request.digest[:19]} of the image")


async def prepare(machine: Machine, request: PrepareBase) -> AsyncGenerator[Event]:
    """Prepare a root inside a build's sandbox, as `base_preparation` does; its lines, and what came of it.

    Raises:
        ClocheError: See `messages`.
    """
    live = builds.find(machine, request.sandbox_id)
    argv = (*machine.tree.python(), "-c", _PREPARATION, str(request.timeout_s / 2))
    program = Program(argv, "root", "/", {}, request.timeout_s)
    last = ""
    async with aclosing(builds.lines(machine, live, program, _OUTPUT_BYTES)) as events:
        async for event in events:
            match event.data:
                case BuildLine(text=text):
                    if last:
                        yield Event("line", BuildLine("stdout", last))
                    last = text
                case BuildExited(status=0):
                    yield Event("prepared", _prepared(last))
                case BuildExited():
                    raise InvalidArgument(f"the image cannot be the base of a template: {last[:500]}")
                case _:
                    continue


def _prepared(text: str) -> Prepared:
    try:
        return msgspec.json.decode(text, type=Prepared)
    except msgspec.DecodeError as error:
        raise InvalidArgument("the image cannot be the base of a template: it said nothing") from error
