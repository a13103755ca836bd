"""What the driver asks its launcher, and how it is packed: one packet of JSON with descriptors, one back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class LaunchRequest:
    """Start the first process of a sandbox, or a zygote.

    Descriptors: the user namespace where one is given, the shared mounts, the network namespace of a
    sandbox, and those that become the process's own 3, 4, ...
    """

    role: Literal["sandbox", "zygote"]
    hostname: str
    folder: str
    """Holds the writable layer."""
    layers: list[str]
    """What that lies over, uppermost first."""
    runtime_tree: str
    first_id: int
    """Host id of the root inside."""
    cgroup_files: list[str]
    argv: list[str]
    env: dict[str, str]
    has_user_namespace: bool = False
    """Else one is made that maps `first_id` and what follows."""
    hands_groups_over: bool = False
    """Whether the process gets the files of its groups, opened, after its other descriptors."""
    mount_paths: list[str] = field(default_factory=list[str])
    """Where the shared mounts go, in the order of their descriptors."""


@dataclass(frozen=True)
class NamespacesRequest:
    """Make namespaces that belong to a family of sandboxes; the answer has their descriptors.

    Descriptors: the family's user namespace, unless it is to be made.
    """

    extents: list[tuple[int, int, int]]
    """Of the family's user namespace, which is the first of the answer; empty where it is there already."""
    sandboxes: list[tuple[int, int]]
    """Of the user namespaces below it, one for each sandbox: first id in it, and how many."""
    networks: int
    """How many network namespaces that belong to it."""


Request = LaunchRequest | NamespacesRequest
_KINDS: dict[str, type[LaunchRequest] | type[NamespacesRequest]] = {
    "launch": LaunchRequest,
    "namespaces": NamespacesRequest,
}


def encode(request: Request) -> bytes:
    """One packet."""
    kind = next(name for name, one in _KINDS.items() if isinstance(request, one))
    return json.dumps({kind: asdict(request)}).encode()


def decode(packet: bytes) -> Request:
    """What `encode` has packed.

    Raises:
        ValueError: It has not.
        TypeError: A field is missing or unknown.
    """
    fields: dict[str, Any] = json.loads(packet)
    ((kind, values),) = fields.items()
    return _KINDS[kind](**values)
