"""What `skopeo` says went wrong, as errors with a type: it has no codes, so its words are looked at."""

from __future__ import annotations

import re

from cloche_server.node.pulling.jail import Done
from cloche_server.node.pulling.messages import ImageSource
from cloche_wire.errors import (
    ClocheError,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

_MESSAGE = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_JAIL_STATUS = 127

_UNKNOWN = ("manifest unknown", "name unknown", "repository not found", "404 (not found)", "no such file or")
_CLOSED = ("unauthorized", "authentication required", "access to the resource is denied", "403 (forbidden)")
_CLOSED_MORE = ("invalid username/password", "denied:", "authentication failed")
_UNTRUSTED = ("x509:", "tls:", "server gave http response to https client")
_UNREACHABLE = ("pinging container registry", "connection refused", "no such host", "i/o timeout", "eof")
_STRANGE = ("unsupported", "unimplemented", "unknown manifest", "schema version", "mime type")
_UNTRUE = ("does not match", "digest did not match", "unexpected end of", "doesn't match")


def failure(source: ImageSource, done: Done) -> ClocheError:
    """The error for a run that has failed."""
    reason = _reason(source, done.stderr)
    if done.problem is not None and (error := _of_gate(source, done)) is not None:
        return error
    if done.status == _JAIL_STATUS:
        return Internal(f"images cannot be fetched: {reason}")
    name, said = source.name, reason.lower()
    for words, error in (
        (_CLOSED + _CLOSED_MORE, _closed(source)),
        (_UNKNOWN, NotFound(f"no such image: {name}")),
        (("no image found in",), InvalidArgument(f"image {name} is not for this machine: {reason}")),
        (_UNTRUSTED, _untrusted(source, reason)),
        (_UNTRUE, InvalidArgument(f"image {name} is not what its digests say: {reason}")),
        (_STRANGE, InvalidArgument(f"image {name} is of a kind that is not known here: {reason}")),
        (_UNREACHABLE, _unreachable(source, reason)),
        (("file too large", "file size limit"), TooLarge(f"image {name} is larger than it may be")),
    ):
        if any(word in said for word in words):
            return error
    return Unavailable(f"cannot fetch image {name}: {reason}")


def _reason(source: ImageSource, text: str) -> str:
    """The last thing that it said, without what nobody is to read."""
    lines = text.strip().splitlines() or ["it ended without a word"]
    found = _MESSAGE.search(lines[-1])
    said = found[1].replace('\\"', '"').replace("\\\\", "\\") if found else lines[-1]
    # SAFETY: a registry may repeat what it was told; this goes into the log of a build.
    for secret in (source.password, source.username):
        said = said.replace(secret, "***") if secret else said
    return said.rpartition(f'"docker://{source.name}": ')[2][-500:]


def _of_gate(source: ImageSource, done: Done) -> ClocheError | None:
    problem = done.problem
    match problem.kind if problem else "":
        case "refused":
            return PermissionDenied(
                f"image {source.name} is at an address that is not for builds: {_told(done)}",
                hint="the operator may name the registry in builds.registries, or the network in "
                "egress.exceptions",
            )
        case "unreachable":
            return _unreachable(source, _told(done))
        case "too_large":
            return TooLarge(f"image {source.name} is larger than it may be: {_told(done)}")
        case _:
            return None


def _told(done: Done) -> str:
    return done.problem.reason[:300] if done.problem else ""


def _closed(source: ImageSource) -> ClocheError:
    if source.username or source.password:
        return Unauthenticated(
            f"the registry does not open image {source.name} to these credentials",
            hint="or there is no such image: many registries say the same then",
        )
    return Unauthenticated(
        f"the registry does not open image {source.name} without credentials",
        hint="or there is no such image: many registries say the same then",
    )


def _untrusted(source: ImageSource, reason: str) -> ClocheError:
    return Unavailable(
        f"registry {source.host} cannot be trusted: {reason}",
        hint="have this machine trust its authority, or name it in builds.insecure_registries",
    )


def _unreachable(source: ImageSource, reason: str) -> ClocheError:
    return Unavailable(
        f"registry {source.host} cannot be reached: {reason}",
        hint="an operator without it may let a template stand for the image: builds.images",
    )
