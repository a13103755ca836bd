"""The one error tree of Cloche, and what each error is on every wire.

    ClocheError
    ├── InvalidArgument       400  invalid_argument
    │   ├── UnsupportedOption 400  invalid_argument
    │   └── InUse             400  invalid_argument
    ├── Unauthenticated       401  unauthenticated
    ├── PermissionDenied      403  permission_denied
    ├── NotFound              404  not_found
    │   ├── SandboxNotFound
    │   ├── TemplateNotFound
    │   ├── VolumeNotFound
    │   ├── SnapshotNotFound
    │   └── PathNotFound
    ├── AlreadyExists         409  already_exists
    ├── Conflict              409  aborted
    ├── SnapshotUnusable      409  aborted
    ├── TooLarge              413  resource_exhausted
    ├── ResourceExhausted     429  resource_exhausted
    ├── Canceled              499  canceled
    ├── Internal              500  internal
    ├── Unimplemented         501  unimplemented
    ├── PortClosed            502  unavailable
    ├── Unavailable           503  unavailable
    ├── DeadlineExceeded      504  deadline_exceeded
    └── NotEnoughSpace        507  resource_exhausted

A message is lower case, without a full stop, with values after a colon; advice for the reader goes into
`hint`. The classes are named after the Connect codes.
"""

# ruff: noqa: N818 - named after the Connect codes, which have no suffix

from __future__ import annotations

from typing import ClassVar


class ClocheError(Exception):
    """Base of every error that crosses a boundary.

    Attributes:
        connect_code: Code in the Connect protocol.
        http_status: Status of an HTTP answer; the JSON body repeats it as `code`.
        retryable: Whether the same request may succeed later with no change made by the caller.
    """

    connect_code: ClassVar[str] = "unknown"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep the message and the advice apart, so that each surface can show them its own way."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class InvalidArgument(ClocheError):
    """The request can never be right as it stands."""

    connect_code = "invalid_argument"
    http_status = 400


class UnsupportedOption(InvalidArgument):
    """A known option that the isolation in use cannot honour; the hint names one that can."""


class InUse(InvalidArgument):
    """Programs of a sandbox use what has to be free for this act; the message names both. They go on.

    Not a conflict: the official clients take that, as the answer to a pause, for "it is paused already".
    """


class Unauthenticated(ClocheError):
    """No credentials, or wrong ones."""

    connect_code = "unauthenticated"
    http_status = 401


class PermissionDenied(ClocheError):
    """Known caller, forbidden act."""

    connect_code = "permission_denied"
    http_status = 403


class NotFound(ClocheError):
    """The thing does not exist, or not for this caller: the two look alike on purpose."""

    connect_code = "not_found"
    http_status = 404


class SandboxNotFound(NotFound):
    """No such sandbox for this caller."""


class TemplateNotFound(NotFound):
    """No such template for this caller."""


class VolumeNotFound(NotFound):
    """No such volume for this caller."""


class SnapshotNotFound(NotFound):
    """No such snapshot for this caller."""


class PathNotFound(NotFound):
    """No such file or folder inside the sandbox or the volume."""


class AlreadyExists(ClocheError):
    """The thing is there already."""

    connect_code = "already_exists"
    http_status = 409


class Conflict(ClocheError):
    """The thing is in a state that does not allow this act."""

    connect_code = "aborted"
    http_status = 409


class SnapshotUnusable(ClocheError):
    """What was kept on disk cannot be used: damaged, or made by other versions. Nothing was started."""

    connect_code = "aborted"
    http_status = 409


class TooLarge(ClocheError):
    """The request is larger than its route takes."""

    connect_code = "resource_exhausted"
    http_status = 413


class ResourceExhausted(ClocheError):
    """A limit of the caller is reached."""

    connect_code = "resource_exhausted"
    http_status = 429
    retryable = True


class Canceled(ClocheError):
    """The caller went away."""

    connect_code = "canceled"
    http_status = 499


class Internal(ClocheError):
    """Something that should hold does not."""

    connect_code = "internal"
    http_status = 500


class Unimplemented(ClocheError):
    """The method is not served here."""

    connect_code = "unimplemented"
    http_status = 501


class PortClosed(ClocheError):
    """The sandbox runs, but nothing listens on the port."""

    connect_code = "unavailable"
    http_status = 502


class Unavailable(ClocheError):
    """A part of the server does not answer at the moment."""

    connect_code = "unavailable"
    http_status = 503
    retryable = True


class DeadlineExceeded(ClocheError):
    """The time the caller gave is over."""

    connect_code = "deadline_exceeded"
    http_status = 504


class NotEnoughSpace(ClocheError):
    """The disk or the quota is full."""

    connect_code = "resource_exhausted"
    http_status = 507


def error_types() -> dict[str, type[ClocheError]]:
    """Every error class by its name: how an error is carried over the server's own links."""
    found: dict[str, type[ClocheError]] = {}
    pending: list[type[ClocheError]] = [ClocheError]
    while pending:
        kind = pending.pop()
        found[kind.__name__] = kind
        pending.extend(kind.__subclasses__())
    return found
