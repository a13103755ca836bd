"""The names under which programs written for E2B catch errors; the errors are Cloche's."""

from __future__ import annotations

from cloche.errors import (
    ClocheError,
    CommandExit,
    DeadlineExceeded,
    InvalidArgument,
    NotEnoughSpace,
    NotFound,
    PathNotFound,
    ResourceExhausted,
    SandboxNotFound,
    SandboxNotRunning,
    SandboxUnreachable,
    TemplateNotFound,
    Unauthenticated,
    Unavailable,
)

SandboxException = ClocheError
TimeoutException = DeadlineExceeded
InvalidArgumentException = InvalidArgument
NotEnoughSpaceException = NotEnoughSpace
NotFoundException = NotFound
FileNotFoundException = PathNotFound
SandboxNotFoundException = SandboxNotFound
SandboxNotRunningException = SandboxNotRunning
SandboxUnreachableException = SandboxUnreachable
AuthenticationException = Unauthenticated
TemplateException = TemplateNotFound
RateLimitException = ResourceExhausted
ServiceBusyException = Unavailable
CommandExitException = CommandExit

__all__ = [
    "AuthenticationException",
    "CommandExitException",
    "FileNotFoundException",
    "InvalidArgumentException",
    "NotEnoughSpaceException",
    "NotFoundException",
    "RateLimitException",
    "SandboxException",
    "SandboxNotFoundException",
    "SandboxNotRunningException",
    "SandboxUnreachableException",
    "ServiceBusyException",
    "TemplateException",
    "TimeoutException",
]
