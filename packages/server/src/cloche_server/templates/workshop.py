"""Where the steps of a build run: sandboxes of the node's, seen as a bench with tools on it.

Each bench is one sandbox over given layers. What the steps on it leave in its root becomes one layer more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

OnLine = Callable[[str, str], Awaitable[None]]
"""Takes one line that a command has written: `stdout` or `stderr`, and the text without its end."""


class Command(msgspec.Struct, frozen=True):
    """A program to run on a bench."""

    argv: list[str]
    user: str = "root"
    workdir: str = ""
    """Empty: the user's home."""
    env: dict[str, str] = {}


class CopyIn(NamedTuple):
    """Files of an archive that go into the root."""

    archive: Path
    """A tar file, maybe compressed, as a client has uploaded it: read inside the sandbox alone."""
    source: str
    """What of it: the part of the path before the first wildcard, which the client has resolved."""
    target: str
    """Absolute: a folder's content goes there; a file takes this name, or goes into one with `/`."""
    owner: str
    """`user:group`."""
    mode: str = ""
    """In octal, for everything that is copied; empty leaves what the archive says."""


class Layer(NamedTuple):
    """What the steps on a bench have changed."""

    layer_id: str
    size_bytes: int
    entries: int
    """Files, folders and links in it; 0: nothing was changed."""


class Setting(NamedTuple):
    """For whom and on what a bench stands."""

    build_id: str
    team_id: str
    layers: tuple[str, ...]
    """Uppermost first."""
    cpu_count: int
    memory_mib: int
    isolation: str = ""
    """Empty: the server's."""


class ImageSource(NamedTuple):
    """Where an image is, and what opens it there."""

    kind: str
    """`docker`: a registry's; `oci`, `docker-archive`: below the operator's folder."""
    name: str
    """`host/repository:tag`, or with `@sha256:...`; else a path."""
    username: str = ""
    password: str = ""


class FetchedImage(NamedTuple):
    """An image whose layers lie on the node for now."""

    pull_id: str
    manifest: str
    config: str
    """Both as their publisher has written them."""


class PreparedBase(NamedTuple):
    """What an image has, once it can be a template's base."""

    shell: str
    """Empty: it has none."""
    is_complete: bool
    """False: packages could be added that could not be reached this time."""


class Bench(Protocol):
    """One sandbox in which steps of a build run."""

    async def run(self, command: Command, on_line: OnLine) -> int:
        """Run a command to its end and return its exit status; 128 and more: it was ended by a signal.

        Raises:
            Unavailable: The sandbox or its node is gone.
            DeadlineExceeded: It ran for too long, and was ended.
            TooLarge: It wrote too much.
        """
        ...

    async def copy_in(self, files: CopyIn) -> None:
        """Unpack an archive inside the sandbox, and move files of it to their place.

        Raises:
            InvalidArgument: It is no archive, or the source is not in it; the message is tar's own.
            TooLarge: It holds more bytes or entries than a layer may.
            Unavailable: The sandbox or its node is gone.
        """
        ...

    async def change(self, *words: str) -> str:
        """Have the root changed without any program of the image, as `node.root_changes` lists it.

        Returns:
            What is said of it: the name of a user, or where one is at home.

        Raises:
            InvalidArgument: It cannot be done; the message says why.
            Unavailable: The sandbox or its node is gone.
        """
        ...

    async def apply_layer(self, image: FetchedImage, digest: str) -> None:
        """Have the root look as a layer of the image says.

        Raises:
            InvalidArgument: It is no archive, or one that leads out.
            TooLarge: It holds more bytes or entries than a layer may.
            Unavailable: The sandbox or its node is gone.
        """
        ...

    async def apply_upload(self, archive: Path) -> None:
        """Have the root look as a layer of a client's says, whose name is its SHA-256.

        Raises:
            InvalidArgument: It is another archive, none, or one that leads out.
            TooLarge: It holds more bytes or entries than a layer may.
            Unavailable: The sandbox or its node is gone.
        """
        ...

    async def prepare_base(self, on_line: OnLine) -> PreparedBase:
        """Give the root what every template has: its user, folders, and packages as far as they can be had.

        Raises:
            InvalidArgument: It cannot be a template's base.
            Unavailable: The sandbox or its node is gone.
        """
        ...

    async def commit(self) -> Layer:
        """End the sandbox, and keep what was changed in its root as a layer.

        Raises:
            TooLarge: It is larger than a layer may be.
            NotEnoughSpace: The disk is too full to keep it.
            Unavailable: The sandbox or its node is gone.
        """
        ...


class Finished(msgspec.Struct, frozen=True):
    """All that a finished build is: what its manifest says."""

    template_id: str
    build_id: str
    team_id: str
    name: str
    layers: tuple[str, ...]
    cpu_count: int
    memory_mib: int
    default_user: str
    default_workdir: str
    env: dict[str, str]
    start_cmd: str = ""
    ready_cmd: str = ""
    isolation: str = ""
    image: str = ""
    """The image that it is based on, by its digest; empty: none."""
    warm: tuple[str, ...] = ()
    """Python modules that its sandboxes have imported before anybody asks for them."""
    warnings: tuple[str, ...] = ()
    """What its owner should know of the build, though it has succeeded: a sentence each."""


class Pruned(NamedTuple):
    """What was removed, or would be."""

    layers: dict[str, int]
    """Bytes of each, by its name."""

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return sum(self.layers.values())


class Workshop(Protocol):
    """Where builds are made and kept."""

    def bench(self, setting: Setting) -> AbstractAsyncContextManager[Bench]:
        """Start a sandbox for steps; at the end of the block nothing of it is left but a committed layer.

        Raises:
            NotFound: A layer is not there.
            ResourceExhausted: No slot is free.
            NotEnoughSpace: The disk is too full to begin.
            Unavailable: The node does not answer.
        """
        ...

    async def read_image(self, source: ImageSource) -> str:
        """Return the manifest that is there under that name, as its publisher has written it.

        Raises:
            ClocheError: As `node.pulling.messages` lists them.
        """
        ...

    def image(
        self, source: ImageSource, known: tuple[str, ...], max_bytes: int
    ) -> AbstractAsyncContextManager[FetchedImage]:
        """Fetch an image without the layers `known`; it is gone at the end of the block.

        Raises:
            ClocheError: As `node.pulling.messages` lists them.
        """
        ...

    async def image_root(self) -> str:
        """Return the name of the layer that lies below the lowest of every image."""
        ...

    async def publish(self, finished: Finished, on_line: OnLine) -> None:
        """Try the build, then make it one that sandboxes can be made of.

        Its start command runs, and its ready command succeeds, in a sandbox of it.

        Raises:
            InvalidArgument: The start command failed, or it was not ready in time.
            Unavailable: The node does not answer; nothing was published.
        """
        ...

    async def squash(self, team_id: str, layers: tuple[str, ...], below: tuple[str, ...]) -> Layer:
        """Make one layer of several that lie over each other, uppermost first, and over others; they stay.

        Raises:
            TooLarge: They are larger together than a layer may be.
            NotEnoughSpace: The disk is too full.
            Unavailable: The node does not answer.
        """
        ...

    async def prune(self, kept: Sequence[str], *, most: int, dry_run: bool) -> Pruned:
        """Remove the oldest layers that no build that is published, no sandbox and nothing of `kept` needs.

        Raises:
            Unavailable: The node does not answer.
        """
        ...

    async def remove(self, build_id: str) -> None:
        """Take away a published build; sandboxes that were made of it live on. Idempotent."""
        ...
