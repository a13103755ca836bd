"""Identifiers and secrets: how they look, how they are made, how they are checked."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from typing import NewType

SandboxId = NewType("SandboxId", str)
TeamId = NewType("TeamId", str)
TemplateId = NewType("TemplateId", str)
BuildId = NewType("BuildId", str)
VolumeId = NewType("VolumeId", str)
SnapshotId = NewType("SnapshotId", str)

API_KEY_PREFIX = "e2b_"
"""How API keys begin: older clients check it."""

_ALPHABET = string.ascii_lowercase + string.digits
_SANDBOX_ID = re.compile(r"[a-z0-9]{1,40}\Z")
_BUILD_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62})\Z")
_VOLUME_ID = re.compile(r"v[a-z0-9]{20}\Z")
_SNAPSHOT_ID = re.compile(r"s[a-z0-9]{20}\Z")


def new_sandbox_id() -> SandboxId:
    """Return `i` and 20 of [a-z0-9].

    It has to fit into a host label that is split at its hyphens (wire contract, fact 15).
    """
    return SandboxId("i" + _random(20))


def new_template_id() -> TemplateId:
    """Return 20 of [a-z0-9]."""
    return TemplateId(_random(20))


def is_sandbox_id(text: str) -> bool:
    """Whether the text may stand in a path, a host label or a cgroup name as a sandbox id."""
    return _SANDBOX_ID.match(text) is not None


def is_build_id(text: str) -> bool:
    """Whether the text may stand in a path as the id of a build."""
    return _BUILD_ID.match(text) is not None


def new_volume_id() -> VolumeId:
    """Return `v` and 20 of [a-z0-9]."""
    return VolumeId("v" + _random(20))


def is_volume_id(text: str) -> bool:
    """Whether the text may stand in a path as a volume id."""
    return _VOLUME_ID.match(text) is not None


def new_snapshot_id() -> SnapshotId:
    """Return `s` and 20 of [a-z0-9]: one longer than the id of a template, in whose place it may stand."""
    return SnapshotId("s" + _random(20))


def is_snapshot_id(text: str) -> bool:
    """Whether the text has the form of a snapshot's id."""
    return _SNAPSHOT_ID.match(text) is not None


def new_volume_token() -> str:
    """Return a fresh token for the content of one volume: `vol_` and 160 random bits in hex."""
    return "vol_" + secrets.token_hex(20)


def new_api_key() -> str:
    """Return a fresh API key: `e2b_` and 40 hex digits (160 random bits)."""
    return API_KEY_PREFIX + secrets.token_hex(20)


def new_access_token() -> str:
    """Return a fresh per-sandbox token: 160 random bits in hex."""
    return secrets.token_hex(20)


def hash_api_key(key: str) -> str:
    """Return what is stored of a key. Plain SHA-256 is enough, since a key has 160 bits of entropy."""
    return hashlib.sha256(key.encode()).hexdigest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
