"""Which node takes a new sandbox."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cloche_server.node.messages import CreateSandbox
from cloche_wire.errors import Unavailable


class Node(NamedTuple):
    """One machine that runs sandboxes, and how it is spoken to."""

    name: str
    control_socket: Path


def choose_node(nodes: Sequence[Node], sandbox: CreateSandbox) -> Node:
    """Return the node for the sandbox. With one machine there is nothing to weigh.

    Raises:
        Unavailable: There is no node at all.
    """
    if not nodes:
        raise Unavailable(f"no node can take the sandbox: {sandbox.sandbox_id}")
    return nodes[0]
