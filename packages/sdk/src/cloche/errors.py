"""What the client raises: the one error tree of Cloche, and four kinds that only a client can see."""

from __future__ import annotations

from cloche_wire.errors import (
    AlreadyExists,
    Canceled,
    ClocheError,
    Conflict,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotEnoughSpace,
    NotFound,
    PathNotFound,
    PermissionDenied,
    PortClosed,
    ResourceExhausted,
    SandboxNotFound,
    SnapshotNotFound,
    SnapshotUnusable,
    TemplateNotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    UnsupportedOption,
    VolumeNotFound,
)

# ruff: noqa: N818 - as in cloche_wire.errors

__all__ = [
    "AlreadyExists",
    "BuildFailed",
    "Canceled",
    "ClocheError",
    "CommandExit",
    "Conflict",
    "DeadlineExceeded",
    "Internal",
    "InvalidArgument",
    "NotEnoughSpace",
    "NotFound",
    "PathNotFound",
    "PermissionDenied",
    "PortClosed",
    "ResourceExhausted",
    "SandboxNotFound",
    "SandboxNotRunning",
    "SandboxUnreachable",
    "SnapshotNotFound",
    "SnapshotUnusable",
    "TemplateNotFound",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnsupportedOption",
    "VolumeNotFound",
]


class SandboxNotRunning(DeadlineExceeded):
    """The sandbox has ended: it was killed, or its time was over."""


class SandboxUnreachable(DeadlineExceeded):
    """The sandbox may run, but did not answer."""


class CommandExit(ClocheError):
    """A command ended with another exit code than 0.

    Attributes:
        exit_code: Its exit code; -1 when a signal ended it.
        stdout: What it printed, None when output was not kept.
        stderr: The same for stderr.
        error: What the sandbox says about the end, such as `exit status 1` or `signal: killed`.
    """

    def __init__(self, exit_code: int, stdout: str | None, stderr: str | None, error: str | None) -> None:
        """Keep the result; the message shows the exit code and stderr."""
        shown = f" and error:\n{stderr}" if stderr else ""
        super().__init__(f"command exited with code {exit_code}{shown}")
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr
        self.error = error


class BuildFailed(ClocheError):
    """A template could not be built; the message is the server's.

    Attributes:
        step: Where: the number of a step, `base` or `finalize`.
    """

    connect_code = "failed_precondition"
    http_status = 400

    def __init__(self, message: str, step: str = "") -> None:
        """Say why, and where."""
        super().__init__(message)
        self.step = step
