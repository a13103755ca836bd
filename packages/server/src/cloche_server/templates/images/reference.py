"""Names of images: `ubuntu:22.04` is `docker.io/library/ubuntu:22.04`."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from cloche_wire.errors import InvalidArgument, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOCAL = ("oci", "docker-archive")
_HUB, _HUB_NAMES = "docker.io", ("docker.io", "index.docker.io", "registry-1.docker.io")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?\Z")
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*\Z"
)
_TAG = re.compile(r"\w[\w.-]{0,127}\Z", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_LOCAL_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*(:[\w.-]+)?\Z", re.ASCII)
_MOST = 255


class Reference(NamedTuple):
    """Where an image is."""

    kind: str
    """`docker`, or one of the operator's folder: `oci`, `docker-archive`."""
    host: str
    repository: str
    """A path, where it is the operator's."""
    tag: str
    digest: str = ""

    @property
    def name(self) -> str:
        """As a registry is asked for it: the digest where there is one."""
        if self.kind != "docker":
            return f"{self.repository}:{self.tag}" if self.tag else self.repository
        return self.at(self.digest) if self.digest else f"{self.place}:{self.tag}"

    @property
    def place(self) -> str:
        """Without its tag."""
        return f"{self.host}/{self.repository}" if self.host else f"{self.kind}:{self.repository}"

    def at(self, digest: str) -> str:
        """The image of that digest there."""
        return f"{self.place}@{digest}"

    @property
    def sources(self) -> tuple[str, ...]:
        """What patterns of the operator may name."""
        return self.host, self.place


def parse(text: str) -> Reference:
    """Take a name apart.

    Raises:
        InvalidArgument: It is none.
    """
    kind, colon, path = text.partition(":")
    if colon and kind in _LOCAL:
        if len(path) > _MOST or not _LOCAL_NAME.match(path) or ".." in path.partition(":")[0].split("/"):
            raise InvalidArgument(f"not a name below the folder of images: {path[:200]!r}")
        return Reference(kind, "", *_split(path, ":"))
    rest, _, digest = text.removeprefix("docker://").partition("@")
    head, slash, tail = rest.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost"):
        head, tail = _HUB, rest
    head = _HUB if head in _HUB_NAMES else head
    repository, tag = _split(tail, ":")
    if head == _HUB and "/" not in repository:
        repository = f"library/{repository}"
    is_name = len(rest) <= _MOST and _HOST.match(head) and _REPOSITORY.match(repository)
    if not is_name or (tag and not _TAG.match(tag)) or ("@" in text and not _DIGEST.match(digest)):
        raise InvalidArgument(f"not a name of an image: {text[:200]!r}", hint="like ubuntu:22.04")
    return Reference("docker", head, repository, tag or "latest", digest)


def _split(text: str, mark: str) -> tuple[str, str]:
    head, found, tail = text.rpartition(mark)
    return (head, tail) if found else (text, "")


def check_allowed(reference: Reference, patterns: Iterable[str]) -> None:
    """Refuse an image that the operator does not let in.

    Raises:
        PermissionDenied: It is none of the patterns.
    """
    if reference.kind != "docker":
        return  # the operator's own folder
    if not any(fnmatchcase(source, pattern) for pattern in patterns for source in reference.sources):
        raise PermissionDenied(
            f"images of {reference.place[:200]} are not open to builds",
            hint="the operator may name the registry in builds.registries",
        )


def same_registry(one: str, other: str) -> bool:
    """Whether two names lead to the same registry, so that credentials for the one are for the other too."""
    try:
        return bool(other) and parse(one).host == parse(other).host
    except InvalidArgument:
        return False
