"""What a manifest says, read with care: a stranger has written it, and a registry has handed it on."""

from __future__ import annotations

import hashlib
import platform
import re
from typing import NamedTuple

import msgspec

from cloche_wire.errors import InvalidArgument, TooLarge

HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
"""The architecture of this machine, as images name it."""
MOST_LAYERS = 500
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LAYERS = (
    "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)  # fmt: skip
_PACKED = ("", "+gzip", ".gzip", "+zstd", ".zstd")
_LAYER_TYPES = frozenset(kind + packed for kind in _LAYERS for packed in _PACKED)


class _Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    size: int = 0
    media_type: str = ""
    platform: _Platform | None = None


class _Manifest(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    manifests: list[_Descriptor] | None = None
    layers: list[_Descriptor] | None = None
    config: _Descriptor | None = None


class _Run(msgspec.Struct, frozen=True):
    env: list[str] | None = msgspec.field(default=None, name="Env")


class _Config(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    config: _Run | None = None


class Image(NamedTuple):
    """One image for one kind of machine."""

    layers: tuple[str, ...]
    """Digests, lowest first."""
    sizes_bytes: tuple[int, ...]
    """Of the same, as they are sent, and as the manifest has it."""


def digest_of(text: str) -> str:
    """How a manifest is named."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def check_digest(text: str, digest: str) -> None:
    """Refuse content that is not what it was asked for by.

    Raises:
        InvalidArgument: It is another.
    """
    if digest_of(text) != digest:
        raise InvalidArgument(f"the registry has sent something else than {digest}")


def choice(text: str) -> str | None:
    """The digest of the image for this machine, of a manifest that lists several; None: it is one itself.

    Raises:
        InvalidArgument: There is none for this machine: the message names those there are; or no manifest.
    """
    manifest = _read(text)
    if manifest.manifests is None:
        return None
    found = [one for one in manifest.manifests if one.platform is not None]
    ours = [one for one in found if (one.platform or _Platform()).architecture == HERE and _is_linux(one)]
    if not ours:
        names = dict.fromkeys(
            _shown(one.platform) for one in found if one.platform and _is_known(one.platform)
        )
        raise InvalidArgument(
            f"the image is not for this machine, linux/{HERE}; there is: {', '.join(names)[:500] or 'none'}"
        )
    if not _DIGEST.match(ours[0].digest):
        raise InvalidArgument(f"the manifest names an image by what is no digest: {ours[0].digest[:100]!r}")
    return ours[0].digest


def image(text: str) -> Image:
    """What an image is made of.

    Raises:
        InvalidArgument: No image of files: something else, or of a kind that is not known here.
        TooLarge: It has more layers than one may have.
    """
    manifest = _read(text)
    if manifest.layers is None or manifest.config is None or manifest.schema_version != 2:
        raise InvalidArgument(
            f"not an image of a kind that is known here: {manifest.media_type[:100] or 'no media type'}, "
            f"schema version {manifest.schema_version}"
        )
    if len(manifest.layers) > MOST_LAYERS:
        raise TooLarge(f"an image of {len(manifest.layers)} layers, of at most {MOST_LAYERS}")
    for layer in manifest.layers:
        if not _DIGEST.match(layer.digest) or layer.size < 0:
            raise InvalidArgument(f"the manifest names a layer by what is no digest: {layer.digest[:100]!r}")
        if layer.media_type not in _LAYER_TYPES:
            raise InvalidArgument(f"not a layer of files: {layer.media_type[:100] or 'no media type'}")
    return Image(tuple(one.digest for one in manifest.layers), tuple(one.size for one in manifest.layers))


def variables(config: str) -> dict[str, str]:
    """The environment that an image asks for.

    Raises:
        InvalidArgument: It is for another machine, or no image's.
    """
    try:
        found = msgspec.json.decode(config, type=_Config)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"the image says nothing of itself: {error}") from error
    if (found.os, found.architecture) not in {("linux", HERE), ("", "")}:
        told = f"{found.os}/{found.architecture}"[:100]
        raise InvalidArgument(f"the image is not for this machine, linux/{HERE}, but for {told}")
    pairs = [text.partition("=") for text in (found.config.env if found.config else None) or ()]
    return {name: value for name, _, value in pairs if _NAME.match(name) and "\0" not in value}


def _read(text: str) -> _Manifest:
    try:
        return msgspec.json.decode(text, type=_Manifest)
    except msgspec.DecodeError as error:
        raise InvalidArgument(f"not a manifest of an image: {error}") from error


def _is_linux(one: _Descriptor) -> bool:
    return one.platform is not None and one.platform.os == "linux"


def _is_known(one: _Platform) -> bool:
    return bool(one.os) and one.os != "unknown"  # what is attached to an image has no platform


def _shown(one: _Platform | None) -> str:
    if one is None:
        return ""
    return "/".join(part for part in (one.os, one.architecture, one.variant) if part)
