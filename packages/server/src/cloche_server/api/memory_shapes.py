"""Bodies of the requests that keep a sandbox's memory and files, or make others of them; see `shapes`."""

import msgspec
from msgspec import field

from cloche_server.api.shapes import Problem, Sandbox


class ResumeBody(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `POST /sandboxes/{id}/resume`."""

    timeout: int = 15
    auto_pause: bool | None = None
    memory: bool | None = None


class PauseBody(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `POST /sandboxes/{id}/pause`."""

    memory: bool = True
    require_healthy_guest: bool = False


class ForkBody(msgspec.Struct, frozen=True):
    """Body of `POST /sandboxes/{id}/fork`."""

    timeout: int = 15
    count: int = 1
    memory: bool = True
    """Ours: whether processes go on in the copies; otherwise they have the files alone, and start anew."""


class SnapshotBody(msgspec.Struct, frozen=True):
    """Body of `POST /sandboxes/{id}/snapshots`."""

    name: str | None = None
    memory: bool = True


class SnapshotsQuery(msgspec.Struct, frozen=True):
    """Query of `GET /snapshots`."""

    sandbox_id: str = field(default="", name="sandboxID")
    name: str = ""
    limit: int = 100
    next_token: str = field(default="", name="nextToken")


class SnapshotInfo(msgspec.Struct, frozen=True):
    """One snapshot of a listing."""

    snapshot_id: str = field(name="snapshotID")
    """By its name and tag where it has one."""
    names: list[str]


class ForkResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one fork: either of the two."""

    sandbox: Sandbox | None = None
    error: Problem | None = None
