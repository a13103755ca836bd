"""What the api says to the node to build templates, on the control socket; see `messages`.

build_open    OpenBuild      BuildOpened, then an event `ended` (BuildEnded) when the sandbox is gone. The
                             sandbox ends with this link, whatever ends it: nothing of it is left then
                             raises NotFound (a layer), ResourceExhausted, NotEnoughSpace, Unavailable
build_run     RunInBuild     {}, then events `line` (BuildLine), and at last `exited` (BuildExited); the
                             command is ended with this link
                             raises SandboxNotFound, DeadlineExceeded, TooLarge, NotEnoughSpace, Internal,
                             also in the middle of the events
build_put     PutInBuild     {}             raises SandboxNotFound, InvalidArgument (no archive, or what is
                             asked for is not in it), PathNotFound (no such upload), TooLarge
build_apply   ApplyUpload    {}             raises SandboxNotFound, InvalidArgument (another archive than it
                             should be, or none), PathNotFound (no such upload), TooLarge
build_change  ChangeRoot     RootChanged    raises SandboxNotFound, InvalidArgument (it cannot be done; the
                             message says why)
build_commit  CommitBuild    LayerMade      the sandbox is gone then, whatever the answer; raises
                             SandboxNotFound, TooLarge, NotEnoughSpace
publish       PublishBuild   {}, then events `line` (BuildLine) of its start command; the end of the
                             events means that it is published, an error in their middle that it is not:
                             InvalidArgument (not ready in time, the start command failed, what
                             is no manifest), NotFound (a layer), AlreadyExists, NotEnoughSpace
unpublish     RemoveBuild    {}             one that is not there is a success; sandboxes of it live on
layers        {}             [LayerMade]    all that are kept
squash        SquashLayers   LayerMade      raises NotFound (a layer), InvalidArgument, TooLarge,
                             NotEnoughSpace
prune_layers  PruneLayers    Pruned
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec


class OpenBuild(msgspec.Struct, frozen=True):
    """Start a sandbox for steps of a build. It has the isolation and the network of any sandbox."""

    build_id: str
    team_id: str
    layers: tuple[str, ...]
    """Names, uppermost first; the lowest may be the id of a build that has a root of its own."""
    cpu_count: int = 2
    memory_mib: int = 2048
    timeout_s: int = 0
    """It ends then at the latest; 0: some time after the longest step that the node's settings permit."""
    isolation: str = ""
    """Empty: the server's."""


class BuildOpened(msgspec.Struct, frozen=True):
    """It runs."""

    sandbox_id: str


class BuildEnded(msgspec.Struct, frozen=True):
    """Event: the sandbox is gone."""

    reason: str


class RunInBuild(msgspec.Struct, frozen=True):
    """Run one command to its end."""

    sandbox_id: str
    argv: tuple[str, ...]
    user: str = "root"
    workdir: str = ""
    """Empty: the user's home."""
    env: dict[str, str] = {}
    timeout_s: float = 0.0
    """0: as long as the node's settings permit."""
    max_output_bytes: int = 64 << 20


class BuildLine(msgspec.Struct, frozen=True):
    """Event: one line that a command has written, without its end; a very long one comes in pieces."""

    stream: Literal["stdout", "stderr"]
    text: str


class BuildExited(msgspec.Struct, frozen=True):
    """Event: the command has ended."""

    status: int
    """As a shell says it: 128 and more for one that a signal has ended."""


class PutInBuild(msgspec.Struct, frozen=True):
    """Unpack an archive inside the sandbox and put what it holds to its place."""

    sandbox_id: str
    upload: str
    """Path of a tar file, maybe by gzip, below `Config.uploads_dir`."""
    source: str
    """What of the archive: a folder, whose content goes to the target, or a file."""
    target: str
    """Absolute: a folder's content goes there; a file is named so, or goes into one with `/` at its end."""
    owner: str = "root:root"
    """`user:group`, names of the sandbox or numbers."""
    mode: str = ""
    """In octal, for all that is put there; empty: as the archive has it."""
    max_bytes: int = 10 << 30
    max_entries: int = 500_000


class ApplyUpload(msgspec.Struct, frozen=True):
    """Have the root look as an uploaded layer says: an archive as images have them."""

    sandbox_id: str
    upload: str
    """Path of a tar file, maybe by gzip, below `Config.uploads_dir`."""
    sha256: str
    """What it must be."""
    max_bytes: int = 20 << 30
    max_entries: int = 500_000


class ChangeRoot(msgspec.Struct, frozen=True):
    """Have a program of ours change the root, as `root_changes` lists it: it needs nothing of the image."""

    sandbox_id: str
    words: tuple[str, ...]


class RootChanged(msgspec.Struct, frozen=True):
    """It has."""

    said: str
    """The last line that it has written."""


class CommitBuild(msgspec.Struct, frozen=True):
    """End the sandbox, and keep what was changed in its root."""

    sandbox_id: str


class LayerMade(msgspec.Struct, frozen=True):
    """A layer that is kept."""

    layer_id: str
    """Empty where nothing was changed, and none is kept."""
    size_bytes: int
    entries: int
    """Files, folders and links."""
    team_id: str
    created_at: datetime


class SquashLayers(msgspec.Struct, frozen=True):
    """Make one layer of several, which stay."""

    team_id: str
    layers: tuple[str, ...]
    """Names of layers that lie directly over each other, uppermost first."""
    below: tuple[str, ...]
    """All that they lie over: what hides nothing there is left out."""


class PublishBuild(msgspec.Struct, frozen=True):
    """Try a build, then make it one that sandboxes can be made of.

    A sandbox of it is started, its start command run until its ready command succeeds.
    """

    team_id: str
    manifest: msgspec.Raw
    """Written as it is; what the node reads of it is checked."""
    ready_timeout_s: float = 600.0


class RemoveBuild(msgspec.Struct, frozen=True):
    """Take away a published build. Its layers stay until they are pruned."""

    build_id: str


class PruneLayers(msgspec.Struct, frozen=True):
    """Remove layers that nothing needs: no published build, no sandbox, and nothing of `kept`."""

    kept: tuple[str, ...] = ()
    """Those that steps may be taken from again."""
    older_than_s: float = 3600.0
    """Younger ones may be those of a build that goes on."""
    most: int = 10_000
    """The oldest of them; the next call goes on."""
    dry_run: bool = False


class Pruned(msgspec.Struct, frozen=True):
    """What was removed, or would be."""

    layers: list[LayerMade]
