"""Messages of the service `process.Process`: start, follow, feed and signal processes of a sandbox.

Mirrors `specs/envd/process.proto`; a unit test keeps the two in step. Names of nested messages are written
out, since one module is one namespace here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from cloche_wire.messages.schema import (
    Kind,
    Message,
    Rpc,
    enum_of,
    message_of,
    repeated_string,
    scalar,
    string_map,
)

SERVICE: Final = "process.Process"


class Signal(IntEnum):
    """The signals that may be sent to a process."""

    SIGNAL_UNSPECIFIED = 0
    SIGNAL_SIGKILL = 9
    SIGNAL_SIGTERM = 15


@dataclass(frozen=True, slots=True)
class PtySize:
    """Size of a terminal in characters."""

    cols: int = field(default=0, metadata=scalar(1, Kind.UINT32))
    rows: int = field(default=0, metadata=scalar(2, Kind.UINT32))


@dataclass(frozen=True, slots=True)
class Pty:
    """A request for a terminal."""

    size: PtySize | None = field(default=None, metadata=message_of(1, PtySize))


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """What to run."""

    cmd: str = field(default="", metadata=scalar(1, Kind.STRING))
    args: list[str] = field(default_factory=list[str], metadata=repeated_string(2))
    envs: dict[str, str] = field(default_factory=dict[str, str], metadata=string_map(3))
    cwd: str | None = field(default=None, metadata=scalar(4, Kind.STRING, optional=True))


@dataclass(frozen=True, slots=True)
class ProcessSelector:
    """Which process: by pid or by the tag given at its start."""

    pid: int | None = field(default=None, metadata=scalar(1, Kind.UINT32, oneof="selector"))
    tag: str | None = field(default=None, metadata=scalar(2, Kind.STRING, oneof="selector"))


@dataclass(frozen=True, slots=True)
class ProcessInput:
    """Bytes for a process: for its stdin, or for its terminal."""

    stdin: bytes | None = field(default=None, metadata=scalar(1, Kind.BYTES, oneof="input"))
    pty: bytes | None = field(default=None, metadata=scalar(2, Kind.BYTES, oneof="input"))


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Says only that the stream is alive."""


@dataclass(frozen=True, slots=True)
class StartEvent:
    """The process runs; always the first event."""

    pid: int = field(default=0, metadata=scalar(1, Kind.UINT32))


@dataclass(frozen=True, slots=True)
class DataEvent:
    """A piece of output; it may end inside a multi-byte character."""

    stdout: bytes | None = field(default=None, metadata=scalar(1, Kind.BYTES, oneof="output"))
    stderr: bytes | None = field(default=None, metadata=scalar(2, Kind.BYTES, oneof="output"))
    pty: bytes | None = field(default=None, metadata=scalar(3, Kind.BYTES, oneof="output"))


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The process ended; always the last event.

    Attributes:
        exit_code: Its exit code, or -1 when a signal ended it.
        exited: Whether it exited by itself.
        status: `exit status N` or `signal: NAME`.
        error: The status again when it is not a success.
    """

    exit_code: int = field(default=0, metadata=scalar(1, Kind.SINT32))
    exited: bool = field(default=False, metadata=scalar(2, Kind.BOOL))
    status: str = field(default="", metadata=scalar(3, Kind.STRING))
    error: str | None = field(default=None, metadata=scalar(4, Kind.STRING, optional=True))


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """One of the things that happen to a process."""

    start: StartEvent | None = field(default=None, metadata=message_of(1, StartEvent, oneof="event"))
    data: DataEvent | None = field(default=None, metadata=message_of(2, DataEvent, oneof="event"))
    end: EndEvent | None = field(default=None, metadata=message_of(3, EndEvent, oneof="event"))
    keepalive: KeepAlive | None = field(default=None, metadata=message_of(4, KeepAlive, oneof="event"))


@dataclass(frozen=True, slots=True)
class ListRequest:
    """Asks for all running processes that were started through this service."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One running process."""

    config: ProcessConfig | None = field(default=None, metadata=message_of(1, ProcessConfig))
    pid: int = field(default=0, metadata=scalar(2, Kind.UINT32))
    tag: str | None = field(default=None, metadata=scalar(3, Kind.STRING, optional=True))


@dataclass(frozen=True, slots=True)
class ListResponse:
    """The running processes."""

    processes: list[ProcessInfo] = field(
        default_factory=list[ProcessInfo], metadata=message_of(1, ProcessInfo, repeated=True)
    )


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Starts a process and follows it.

    Attributes:
        stdin: Whether the process gets a stdin that can be written to; None means yes, for clients older
            than the field.
    """

    process: ProcessConfig | None = field(default=None, metadata=message_of(1, ProcessConfig))
    pty: Pty | None = field(default=None, metadata=message_of(2, Pty, optional=True))
    tag: str | None = field(default=None, metadata=scalar(3, Kind.STRING, optional=True))
    stdin: bool | None = field(default=None, metadata=scalar(4, Kind.BOOL, optional=True))


@dataclass(frozen=True, slots=True)
class StartResponse:
    """One event of the process that was started."""

    event: ProcessEvent | None = field(default=None, metadata=message_of(1, ProcessEvent))


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """Follows a running process from now on."""

    process: ProcessSelector | None = field(default=None, metadata=message_of(1, ProcessSelector))


@dataclass(frozen=True, slots=True)
class ConnectResponse:
    """One event of the process that is followed."""

    event: ProcessEvent | None = field(default=None, metadata=message_of(1, ProcessEvent))


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """Changes the size of a process's terminal."""

    process: ProcessSelector | None = field(default=None, metadata=message_of(1, ProcessSelector))
    pty: Pty | None = field(default=None, metadata=message_of(2, Pty, optional=True))


@dataclass(frozen=True, slots=True)
class UpdateResponse:
    """Done."""


@dataclass(frozen=True, slots=True)
class StreamInputStart:
    """First message of an input stream: which process it is for."""

    process: ProcessSelector | None = field(default=None, metadata=message_of(1, ProcessSelector))


@dataclass(frozen=True, slots=True)
class StreamInputData:
    """One piece of an input stream; its only field has the number 2 in the official schema."""

    input: ProcessInput | None = field(default=None, metadata=message_of(2, ProcessInput))


@dataclass(frozen=True, slots=True)
class StreamInputRequest:
    """One message of an input stream."""

    start: StreamInputStart | None = field(
        default=None, metadata=message_of(1, StreamInputStart, oneof="event")
    )
    data: StreamInputData | None = field(default=None, metadata=message_of(2, StreamInputData, oneof="event"))
    keepalive: KeepAlive | None = field(default=None, metadata=message_of(3, KeepAlive, oneof="event"))


@dataclass(frozen=True, slots=True)
class StreamInputResponse:
    """All input was taken."""


@dataclass(frozen=True, slots=True)
class SendInputRequest:
    """Gives a process one piece of input."""

    process: ProcessSelector | None = field(default=None, metadata=message_of(1, ProcessSelector))
    input: ProcessInput | None = field(default=None, metadata=message_of(2, ProcessInput))


@dataclass(frozen=True, slots=True)
class SendInputResponse:
    """Done."""


@dataclass(frozen=True, slots=True)
class SendSignalRequest:
    """Sends a signal to a process."""

    process: ProcessSelector | None = field(default=None, metadata=message_of(1, ProcessSelector))
    signal: int = field(default=Signal.SIGNAL_UNSPECIFIED, metadata=enum_of(2, Signal))


@dataclass(frozen=True, slots=True)
class SendSignalResponse:
    """Done."""


@dataclass(frozen=True, slots=True)
class CloseStdinRequest:
    """Closes the stdin of a process."""

    process: ProcessSelector | None = field(default=None, metadata=message_of(1, ProcessSelector))


@dataclass(frozen=True, slots=True)
class CloseStdinResponse:
    """Done."""


REPLAY_FROM_HEADER: Final = "Cloche-Replay-From"
"""Of a call of Connect, our own: offset in bytes, over all kinds of output together, from which kept output
comes first. Of the answer: the offset of the first byte that follows. No E2B client sends or reads it."""

LIST: Final = Rpc(SERVICE, "List", ListRequest, ListResponse)
START: Final = Rpc(SERVICE, "Start", StartRequest, StartResponse, server_stream=True)
CONNECT: Final = Rpc(SERVICE, "Connect", ConnectRequest, ConnectResponse, server_stream=True)
UPDATE: Final = Rpc(SERVICE, "Update", UpdateRequest, UpdateResponse)
STREAM_INPUT: Final = Rpc(SERVICE, "StreamInput", StreamInputRequest, StreamInputResponse, client_stream=True)
SEND_INPUT: Final = Rpc(SERVICE, "SendInput", SendInputRequest, SendInputResponse)
SEND_SIGNAL: Final = Rpc(SERVICE, "SendSignal", SendSignalRequest, SendSignalResponse)
CLOSE_STDIN: Final = Rpc(SERVICE, "CloseStdin", CloseStdinRequest, CloseStdinResponse)

RPCS: Final[dict[str, Rpc]] = {
    rpc.name: rpc
    for rpc in (LIST, START, CONNECT, UPDATE, STREAM_INPUT, SEND_INPUT, SEND_SIGNAL, CLOSE_STDIN)
}

PROTO_NAMES: Final[dict[str, type[Message]]] = {
    "PTY": Pty,
    "PTY.Size": PtySize,
    "ProcessConfig": ProcessConfig,
    "ProcessSelector": ProcessSelector,
    "ProcessInput": ProcessInput,
    "ProcessEvent": ProcessEvent,
    "ProcessEvent.StartEvent": StartEvent,
    "ProcessEvent.DataEvent": DataEvent,
    "ProcessEvent.EndEvent": EndEvent,
    "ProcessEvent.KeepAlive": KeepAlive,
    "ListRequest": ListRequest,
    "ListResponse": ListResponse,
    "ProcessInfo": ProcessInfo,
    "StartRequest": StartRequest,
    "StartResponse": StartResponse,
    "ConnectRequest": ConnectRequest,
    "ConnectResponse": ConnectResponse,
    "UpdateRequest": UpdateRequest,
    "UpdateResponse": UpdateResponse,
    "StreamInputRequest": StreamInputRequest,
    "StreamInputRequest.StartEvent": StreamInputStart,
    "StreamInputRequest.DataEvent": StreamInputData,
    "StreamInputRequest.KeepAlive": KeepAlive,
    "StreamInputResponse": StreamInputResponse,
    "SendInputRequest": SendInputRequest,
    "SendInputResponse": SendInputResponse,
    "SendSignalRequest": SendSignalRequest,
    "SendSignalResponse": SendSignalResponse,
    "CloseStdinRequest": CloseStdinRequest,
    "CloseStdinResponse": CloseStdinResponse,
}
