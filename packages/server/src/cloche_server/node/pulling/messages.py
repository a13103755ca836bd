"""What the api says to the node about images of registries, on the control socket; see `node.messages`.

image_read     ReadImage      ImageText: what the registry says there is under that name, whoever believes it
image_fetch    FetchImage     {}, then an event `fetched` (Fetched), after which the files stay until the
                              caller goes
both raise     PermissionDenied (an address that is not for builds, no such folder of the operator's),
               Unauthenticated (these credentials open nothing), NotFound, InvalidArgument (nothing for this
               machine, a kind that is not known, content that is not what its digest says), TooLarge,
               Unavailable (no registry answers, no skopeo), DeadlineExceeded, NotEnoughSpace
image_root     {}             ImageRoot: the layer below the lowest of every image
image_apply    ApplyLayer     {}              raises SandboxNotFound, PathNotFound (no such layer was
                              fetched), InvalidArgument (no archive, or one that leads out), TooLarge
image_prepare  PrepareBase    {}, then events `line` (BuildLine), and at last `prepared` (Prepared); raises
                              SandboxNotFound, InvalidArgument (it cannot be one's base)
"""

from __future__ import annotations

from typing import Literal

import msgspec


class ImageSource(msgspec.Struct, frozen=True):
    """Where an image is, and what opens it there. The credentials are nobody else's to see."""

    kind: Literal["docker", "oci", "docker-archive"]
    """Of a registry, or below the operator's folder: how `skopeo` calls them."""
    name: str
    """`host/repository:tag`, or with `@sha256:...`; else a path below the folder, and maybe `:tag`."""
    username: str = ""
    password: str = ""

    @property
    def host(self) -> str:
        """The registry, maybe with its port; empty for what is the operator's."""
        return self.name.partition("/")[0] if self.kind == "docker" else ""


class ReadImage(msgspec.Struct, frozen=True):
    """Ask for a manifest as it is."""

    source: ImageSource
    timeout_s: float = 60.0


class ImageText(msgspec.Struct, frozen=True):
    """A manifest."""

    text: str


class FetchImage(msgspec.Struct, frozen=True):
    """Fetch an image's layers, but those that are known already."""

    source: ImageSource
    known: tuple[str, ...] = ()
    """Digests of layers, as the registry's manifest names them."""
    max_bytes: int = 10 << 30
    timeout_s: float = 3600.0


class Fetched(msgspec.Struct, frozen=True):
    """Event: the files are there."""

    pull_id: str
    manifest: str
    """Names the layers that lie here: other ones than the registry's where they had to be packed anew."""
    config: str


class ImageRoot(msgspec.Struct, frozen=True):
    """A layer with nothing but root's account: images may have none."""

    layer_id: str


class ApplyLayer(msgspec.Struct, frozen=True):
    """Have a build's sandbox look as that layer says."""

    sandbox_id: str
    pull_id: str
    digest: str
    max_bytes: int = 20 << 30
    max_entries: int = 1_000_000
    """Both of what is unpacked."""


class PrepareBase(msgspec.Struct, frozen=True):
    """Have what every template starts with: its user, a folder for code, and what clients call, if it can."""

    sandbox_id: str
    timeout_s: float = 600.0


class Prepared(msgspec.Struct, frozen=True):
    """Event: what there is now."""

    shell: str
    """Empty: none at all."""
    is_complete: bool
    """False: packages are missing that could be there, had their source been reached."""
