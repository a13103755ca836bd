"""The server's settings: one frozen struct, read once at start and handed to every process.

Order, later wins: the defaults below, `STATE/config.toml` when it exists, `CLOCHE_*` variables, command
line options. Unknown keys are errors, because a misspelt limit would otherwise be no limit at all.
"""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from cloche_wire.errors import InvalidArgument

Isolation = Literal["auto", "container", "gvisor", "fake"]

API_UID = 0x0FFF_0000
"""User the api runs as: below the ranges of the sandboxes, above every local account.

Needs no entry in /etc/passwd.
"""
EDGE_UID = API_UID + 1
"""User the edge runs as."""
LOCAL_AUTHORITY = "Cloche local authority"
"""How the names of the certificate authorities begin that servers make for themselves."""
EGRESS_UID = API_UID + 2
"""User the egress runs as."""
PULL_UID = API_UID + 3
"""User of the program that fetches images, and of the gate of its network."""
VOLUMES_FIRST_ID = 0x0FFE_0000
"""Root of the process that serves the content of volumes: the first of 65,536 ids of a user namespace of its
own, below those of the api."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one sandbox may use, how many there may be, and how fast one API key may ask."""

    default_timeout_s: int = 300
    """Life of a sandbox whose creator named none (`POST /v2/sandboxes`)."""
    legacy_timeout_s: int = 15
    """The same for `POST /sandboxes`, as older clients expect."""
    max_timeout_s: int = 86_400
    """Longest life that may be asked for: 24 hours."""
    pids: int = 1024
    """Processes and threads in one sandbox."""
    max_sandboxes: int = 400
    """Sandboxes alive at once; more answer 429. Must stay below the 512 slots of a block."""
    start_timeout_s: float = 60.0
    """Deadline for one create, from the request to the agent's first answer."""
    requests_per_s: float = 200.0
    """Requests to the control plane that one API key may send per second for long; more answer 429.
    0: no limit."""
    requests_burst: int = 2000
    """How many of them may come at once after a pause."""
    creates_per_s: float = 120.0
    """The same for creates (sandboxes, forks, snapshots), as many as E2B allows; 0: no limit."""
    creates_burst: int = 1200
    """How many of those may come at once after a pause."""

    def __post_init__(self) -> None:
        """Refuse rates that would let nothing through, or mean nothing."""
        if not (0 <= self.requests_per_s < math.inf and 0 <= self.creates_per_s < math.inf):
            raise ValueError("limits.requests_per_s and limits.creates_per_s are at least 0")
        if min(self.requests_burst, self.creates_burst) < 1:
            raise ValueError("limits.requests_burst and limits.creates_burst are at least 1")


class Egress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What sandboxes reach outside."""

    exceptions: tuple[str, ...] = ()
    """IPv4 networks reachable although they lie in the always-denied ranges (a private package mirror)."""
    resolvers: tuple[str, ...] = ()
    """Upstream DNS servers of the stub; empty: those of the host's /etc/resolv.conf."""


class Ahead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sandboxes made before they are asked for, of templates that were asked for lately."""

    most: int = 8
    """How many there may be at once, over all templates; 0: none."""
    least: int = 2
    """How many of one template, as long as it was asked for within `keep_s`."""
    keep_s: int = 3600
    """After this long without a create of a template none of it is kept."""
    memory_reserve_pct: int = 25
    """Part of the machine's memory that they leave free."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if not (0 <= self.most <= _MOST_AHEAD and self.least >= 0 and 0 <= self.memory_reserve_pct <= 100):
            raise ValueError(f"ahead.most is between 0 and {_MOST_AHEAD}, ahead.memory_reserve_pct up to 100")


class Idle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of sandboxes in which nothing happens; a create may say it for its own."""

    after_s: int = 0
    """After so long without a request or stream open, without CPU time and without a connection of the
    sandbox's own; 0: nothing."""
    act: Literal["freeze", "pause"] = "freeze"
    """`freeze`: it stands still in memory. `pause`: it goes to disk, which not every isolation can."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.after_s < 0:
            raise ValueError("idle.after_s is at least 0")


_MOST_AHEAD = 100
_LEAST_VOLUME_MIB = 8
_INODE_BYTES = 256
"""Of ext4: what its tables take for each file."""


class Volumes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Folders that outlive sandboxes, and what each may hold."""

    quota: Literal["image", "none"] = "image"
    """`image`: each volume is a file system of its own in a file, with hard limits. `none`: a plain folder;
    a volume may then fill the disk. Volumes keep the kind they were made with."""
    size_mib: int = 10_240
    """Size of a new volume; its file system takes some percent of it."""
    files: int = 500_000
    """Files, folders and links in a new volume."""
    preallocate: bool = False
    """Take the whole size from the disk at once: a full disk can then not break into a volume's writes."""
    per_team: int = 50
    """Volumes of one team; more answer 429."""

    def __post_init__(self) -> None:
        """Refuse what no file system can be made with."""
        if self.size_mib < _LEAST_VOLUME_MIB or self.files < 1:
            raise ValueError(f"volumes.size_mib is at least {_LEAST_VOLUME_MIB}, volumes.files at least 1")
        if self.files * _INODE_BYTES > self.size_mib << 19:
            raise ValueError("the tables of volumes.files would take more than half of volumes.size_mib")


class Builds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Templates that clients build."""

    at_once: int = 2
    """Builds that run at the same time; others wait for their turn."""
    max_upload_mib: int = 4096
    """Size of one archive of files that a client may send for a build."""
    keep_uploads_days: int = 7
    """How long such an archive stays when no build asks for it."""
    keep_steps_days: int = 30
    """How long what a step has left stays when no build asks for it."""
    keep_builds_days: int = 30
    """How long a build stays to which no tag leads any more and that no sandbox is made of."""
    max_layer_mib: int = 20_480
    """What one step may write, counted while it runs."""
    max_layer_files: int = 500_000
    """Files and folders that one step may write."""
    step_timeout_s: int = 3600
    """How long one step may run."""
    timeout_s: int = 14_400
    """How long a whole build may take."""
    min_free_mib: int = 1024
    """Free disk that builds leave: with less no step begins, and one that runs ends."""
    images: dict[str, str] = {}
    """What stands in for images: from their names, which may hold `*`, to templates of this server."""
    registries: tuple[str, ...] = ("*",)
    """Where images may come from: hosts, or patterns of `host/repository`; none: nowhere. A host that is
    named without `*` may also lie at a private address."""
    insecure_registries: tuple[str, ...] = ()
    """Hosts that may be asked without TLS, or with a certificate that nobody vouches for."""
    local_images: str = ""
    """Folder of images for `oci:NAME` and `docker-archive:NAME`; empty: there are none."""
    max_image_mib: int = 10_240
    """What one image may bring over the network."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        least = min(self.at_once, self.max_upload_mib, self.keep_uploads_days, self.keep_steps_days)
        limits = (self.max_layer_mib, self.max_layer_files, self.step_timeout_s, self.timeout_s)
        if min(least, self.keep_builds_days, self.max_image_mib, self.min_free_mib, *limits) < 1:
            raise ValueError("the numbers of builds are at least 1")
        if self.local_images and not self.local_images.startswith("/"):
            raise ValueError("builds.local_images is an absolute path")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the server's processes have to know."""

    state: str = "/var/lib/cloche"
    """Folder that holds all state of this server."""
    host: str = "127.0.0.1"
    """Address the edge listens on."""
    port: int = 3000
    """Port the edge listens on, for plain http and for https alike."""
    domain: str = ""
    """Domain of `{port}-{id}.{domain}`; empty: `cloche.localhost:{port}`."""
    isolation: Isolation = "auto"
    """Driver of new sandboxes that ask for none; `auto` is settled when the server first starts."""
    allow_isolation: tuple[Literal["container", "gvisor"], ...] = ()
    """Drivers that creates and templates may ask for although they are weaker than `isolation`; stronger ones
    they may always ask for."""
    templates: str = ""
    """Folder of finished templates; empty: `STATE/templates`."""
    limits: Limits = Limits()
    egress: Egress = Egress()
    volumes: Volumes = Volumes()
    ahead: Ahead = Ahead()
    builds: Builds = Builds()
    idle: Idle = Idle()

    @property
    def state_dir(self) -> Path:
        """The state folder."""
        return Path(self.state)

    @property
    def run_dir(self) -> Path:
        """Sockets of the server's own processes and of the agents."""
        return self.state_dir / "run"

    @property
    def node_socket(self) -> Path:
        """Where the api speaks to the node."""
        return self.run_dir / "node.sock"

    @property
    def edge_socket(self) -> Path:
        """Where the edge asks the node for routes and connections."""
        return self.run_dir / "edge.sock"

    @property
    def egress_socket(self) -> Path:
        """Where the egress asks the node what sandboxes may reach."""
        return self.run_dir / "egress.sock"

    @property
    def api_socket(self) -> Path:
        """Where the edge forwards control-plane requests."""
        return self.run_dir / "api.sock"

    @property
    def content_dir(self) -> Path:
        """All that the process of the volumes' content sees of the machine: one socket of the node."""
        return self.run_dir / "content"

    @property
    def open_socket(self) -> Path:
        """Where that process asks the node for the root of a volume."""
        return self.content_dir / "node.sock"

    @property
    def content_socket(self) -> Path:
        """Where the edge forwards requests for the content of volumes."""
        return self.run_dir / "content.sock"

    @property
    def volumes_dir(self) -> Path:
        """Volumes: `<id>/volume.json`, and beside it `image` or `files`."""
        return self.state_dir / "volumes"

    @property
    def database(self) -> Path:
        """The control plane's SQLite file; its folder belongs to the api's user."""
        return self.state_dir / "db" / "cloche.sqlite3"

    @property
    def admin_token_hash(self) -> Path:
        """SHA-256 of the operator's token, for the api to compare with; the token itself is root's."""
        return self.database.with_name("admin-token.sha256")

    @property
    def journal_dir(self) -> Path:
        """The node's records of its sandboxes."""
        return self.state_dir / "node" / "journal"

    @property
    def tools_dir(self) -> Path:
        """Programs that the set-up has laid down for this server alone."""
        return self.state_dir / "tools"

    @property
    def templates_dir(self) -> Path:
        """Finished templates: `<build id>/manifest.json` and `<build id>/rootfs`."""
        return Path(self.templates) if self.templates else self.state_dir / "templates"

    @property
    def uploads_dir(self) -> Path:
        """Archives that clients have sent for builds: `<team>/<hash>`; it belongs to the api's user."""
        return self.state_dir / "uploads"

    @property
    def pulls_dir(self) -> Path:
        """Images while they are fetched: `<pull id>`, each of the user that fetches."""
        return self.state_dir / "pulls"

    @property
    def public_domain(self) -> str:
        """The domain as clients see it, port included where it is not 443."""
        return self.domain or f"cloche.localhost:{self.port}"


def load(overrides: dict[str, Any]) -> Config:
    """Build the configuration of this start.

    Args:
        overrides: Options given on the command line; None values are left out.

    Raises:
        InvalidArgument: An unknown key or a value of the wrong type, in the file, the environment or the
        options.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    state = Path(given.get("state") or os.environ.get("CLOCHE_STATE") or Config().state)
    values: dict[str, Any] = {}
    path = state / "config.toml"
    if path.exists():
        try:
            values = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise InvalidArgument(f"cannot read configuration: {path}: {error}") from error
    for key in ("host", "port", "domain", "isolation", "templates"):
        if value := os.environ.get(f"CLOCHE_{key.upper()}"):
            values[key] = value
    if (most := given.pop("ahead", None)) is not None:
        values["ahead"] = {**values.get("ahead", {}), "most": most}
    values |= given
    values["state"] = str(state.absolute())
    try:
        return msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(
            f"bad configuration: {error}", hint=f"see {path} and the CLOCHE_* variables"
        ) from error
