"""The node as tests run it: `node_program.py CONFIG TREE [STEP:COUNT]`.

The runtime tree is made once for all tests. With a crash point, the process kills itself as soon as the named
step has been done for the given time, as `kill -9` would in that moment; steps count once `STATE/armed` is
there.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cloche_server.config import Config
from cloche_server.isolation import loop_image
from cloche_server.isolation.container import driver
from cloche_server.isolation.container.driver import ContainerDriver
from cloche_server.isolation.gvisor.driver import GvisorDriver
from cloche_server.node import agent_link, assemble, service
from cloche_server.node.images import Images
from cloche_server.node.journal import Journal
from cloche_server.node.layers import Layers
from cloche_server.node.machine import Trash
from cloche_server.node.network import Network
from cloche_server.node.runtime_tree import RuntimeTree
from cloche_server.node.slots import Slots
from cloche_server.node.volumes import Volumes

STEPS: dict[str, tuple[Any, str]] = {
    "journal.write": (Journal, "write"),
    "journal.remove": (Journal, "remove"),
    "network.create": (Network, "create"),
    "network.remove": (Network, "remove"),
    "listen": (assemble, "_listen"),
    "layer": (driver, "_write_layer"),
    "start": (ContainerDriver, "start"),
    "initialize": (agent_link, "initialize"),
    "freeze": (ContainerDriver, "freeze"),
    "thaw": (ContainerDriver, "thaw"),
    "destroy": (ContainerDriver, "destroy"),
    "layers.commit": (Layers, "commit"),
    "gvisor.start": (GvisorDriver, "start"),
    "gvisor.freeze": (GvisorDriver, "freeze"),
    "gvisor.save": (GvisorDriver, "save"),
    "gvisor.thaw": (GvisorDriver, "thaw"),
    "gvisor.destroy": (GvisorDriver, "destroy"),
    "images.commit": (Images, "commit"),
    "images.remove": (Images, "remove"),
    "slots.take": (Slots, "take"),
    "trash": (Trash, "put"),
    "volume.image": (loop_image, "make"),
    "volume.make": (Volumes, "_make"),
    "volume.mount": (Volumes, "mount"),
}


def main() -> None:
    config, tree, *crash = sys.argv[1:]
    for point in crash:
        step, count = point.split(":")
        owner, name = STEPS[step]
        armed = Path(msgspec.json.decode(config)["state"], "armed")
        setattr(owner, name, dying_after(getattr(owner, name), int(count), armed))
    service.run(msgspec.json.decode(config, type=Config), RuntimeTree(Path(tree)))


def dying_after(function: Callable[..., Any], count: int, armed: Path) -> Callable[..., Any]:
    calls = 0

    def counted() -> None:
        nonlocal calls
        calls += armed.exists()
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        counted()
        return result

    @functools.wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        result = await function(*args, **kwargs)
        counted()
        return result

    return awaited if function.__code__.co_flags & 0x80 else plain  # CO_COROUTINE


if __name__ == "__main__":
    main()
