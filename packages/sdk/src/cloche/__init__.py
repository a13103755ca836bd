"""Cloche's client: sandboxes for code you do not trust, on your own machine.

from cloche import Sandbox

with Sandbox.create() as sandbox:
    print(sandbox.run_code("1 + 1").text)
"""

from __future__ import annotations

from cloche._async.sandbox import AsyncSandbox
from cloche._async.template import AsyncTemplate
from cloche._async.volume import AsyncVolume
from cloche._config import ConnectionOptions
from cloche._sync.commands import CommandHandle
from cloche._sync.files import WatchHandle, WriteEntry
from cloche._sync.listing import SandboxPaginator
from cloche._sync.sandbox import Sandbox
from cloche._sync.template import Template
from cloche._sync.volume import Volume
from cloche._template_requests import BuildInfo, BuildLogEntry
from cloche._template_steps import CopyItem
from cloche.errors import (
    BuildFailed,
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
    SnapshotNotFound,
    TemplateNotFound,
    Unauthenticated,
    Unavailable,
    VolumeNotFound,
)
from cloche.models import (
    CommandResult,
    Context,
    EntryInfo,
    FilesystemEvent,
    FilesystemEventType,
    FileType,
    ProcessInfo,
    PtySize,
    SandboxInfo,
    SandboxQuery,
    SandboxState,
    SnapshotInfo,
    VolumeEntry,
    VolumeInfo,
    WriteInfo,
)
from cloche_wire.execution import Execution, ExecutionError, Logs, OutputMessage, Result

__all__ = [
    "AsyncSandbox",
    "AsyncTemplate",
    "AsyncVolume",
    "BuildFailed",
    "BuildInfo",
    "BuildLogEntry",
    "ClocheError",
    "CommandExit",
    "CommandHandle",
    "CommandResult",
    "ConnectionOptions",
    "Context",
    "CopyItem",
    "DeadlineExceeded",
    "EntryInfo",
    "Execution",
    "ExecutionError",
    "FileType",
    "FilesystemEvent",
    "FilesystemEventType",
    "InvalidArgument",
    "Logs",
    "NotEnoughSpace",
    "NotFound",
    "OutputMessage",
    "PathNotFound",
    "ProcessInfo",
    "PtySize",
    "ResourceExhausted",
    "Result",
    "Sandbox",
    "SandboxInfo",
    "SandboxNotFound",
    "SandboxNotRunning",
    "SandboxPaginator",
    "SandboxQuery",
    "SandboxState",
    "SandboxUnreachable",
    "SnapshotInfo",
    "SnapshotNotFound",
    "Template",
    "TemplateNotFound",
    "Unauthenticated",
    "Unavailable",
    "Volume",
    "VolumeEntry",
    "VolumeInfo",
    "VolumeNotFound",
    "WatchHandle",
    "WriteEntry",
    "WriteInfo",
]
