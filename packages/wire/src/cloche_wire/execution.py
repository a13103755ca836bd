"""What running code gives: results, logs, an error; and the event lines that carry them.

event line                                        event
{"type":"number_of_executions","execution_count"}  ExecutionCount
{"type":"stdout"|"stderr","text","timestamp"}      OutputMessage
{"type":"result", formats..., "is_main_result"}    Result
{"type":"error","name","value","traceback"}        ExecutionError
{"type":"keepalive"}                               KeepAlive
{"type":"end_of_execution"}                        EndOfExecution
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

from cloche_wire.errors import InvalidArgument
from cloche_wire.ndjson import encode_line

FORMATS: Final = (
    "text",
    "html",
    "markdown",
    "svg",
    "png",
    "jpeg",
    "pdf",
    "latex",
    "json",
    "javascript",
    "data",
    "chart",
)
"""Names of the representations a result may have, in the order clients list them."""


@dataclass(frozen=True, slots=True)
class ExecutionCount:
    """The number that the kernel gave to this execution."""

    execution_count: int


@dataclass(frozen=True, slots=True)
class OutputMessage:
    """A piece of what the code printed.

    Attributes:
        line: The text; not necessarily a whole line.
        timestamp: ISO 8601 time of the print, as the kernel reported it.
        error: Whether it was printed to stderr.
    """

    line: str
    timestamp: str = ""
    error: bool = False

    def __str__(self) -> str:
        return self.line


@dataclass(frozen=True, slots=True)
class ExecutionError:
    """The exception that ended the code.

    Attributes:
        name: Type of the exception.
        value: Its message.
        traceback: The traceback as text.
    """

    name: str
    value: str
    traceback: str

    def to_json(self) -> str:
        """Return the three fields as a JSON object."""
        return json.dumps({"name": self.name, "value": self.value, "traceback": self.traceback})


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """One value that the code displayed, in each representation it has; notebooks can display it again.

    Attributes:
        text: Plain text; the main result always has one.
        png: Base64, as are `jpeg` and `pdf`.
        extra: Representations of any other media type.
        is_main_result: Whether it is the value of the last expression, not something displayed on the way.
    """

    text: str | None = None
    html: str | None = None
    markdown: str | None = None
    svg: str | None = None
    png: str | None = None
    jpeg: str | None = None
    pdf: str | None = None
    latex: str | None = None
    json: Any = None
    javascript: str | None = None
    data: Any = None
    chart: Any = None
    is_main_result: bool = False
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - representations have no common type
        if name in self.extra:
            return self.extra[name]
        return getattr(self, name)

    def formats(self) -> list[str]:
        """Return the names of the representations that this result has."""
        return [name for name in FORMATS if getattr(self, name)] + list(self.extra)

    def __repr__(self) -> str:
        return f"Result({self.text})" if self.text else f"Result(Formats: {', '.join(self.formats())})"

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        return self.html

    def _repr_markdown_(self) -> str | None:
        return self.markdown

    def _repr_svg_(self) -> str | None:
        return self.svg

    def _repr_png_(self) -> str | None:
        return self.png

    def _repr_jpeg_(self) -> str | None:
        return self.jpeg

    def _repr_pdf_(self) -> str | None:
        return self.pdf

    def _repr_latex_(self) -> str | None:
        return self.latex

    def _repr_json_(self) -> Any:  # noqa: ANN401 - any JSON value
        return self.json

    def _repr_javascript_(self) -> str | None:
        return self.javascript


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Says only that the stream is alive."""


@dataclass(frozen=True, slots=True)
class EndOfExecution:
    """The last event: the execution is over."""


Event: TypeAlias = "ExecutionCount | OutputMessage | Result | ExecutionError | KeepAlive | EndOfExecution"


@dataclass(slots=True)
class Logs:
    """What the code printed, in pieces as they came."""

    stdout: list[str] = field(default_factory=list[str])
    stderr: list[str] = field(default_factory=list[str])

    def to_json(self) -> str:
        """Return both lists as a JSON object."""
        return json.dumps({"stdout": self.stdout, "stderr": self.stderr})


@dataclass(slots=True)
class Execution:
    """All that one run of code gave.

    Attributes:
        results: What was displayed, the main result among it.
        logs: What was printed.
        error: The exception that ended the code, or None.
        execution_count: The kernel's number of this run, from 1.
    """

    results: list[Result] = field(default_factory=list[Result])
    logs: Logs = field(default_factory=Logs)
    error: ExecutionError | None = None
    execution_count: int | None = None

    @property
    def text(self) -> str | None:
        """The text of the main result; None when the last line was not an expression with a value."""
        return next((result.text for result in self.results if result.is_main_result), None)

    def apply(self, event: Event) -> None:
        """Add one event. Of several errors the first is kept."""
        match event:
            case ExecutionCount():
                self.execution_count = event.execution_count
            case OutputMessage():
                (self.logs.stderr if event.error else self.logs.stdout).append(event.line)
            case Result():
                self.results.append(event)
            case ExecutionError():
                self.error = self.error or event
            case KeepAlive() | EndOfExecution():
                pass

    def to_json(self) -> str:
        """Return results, logs and error as a JSON object, the latter two as JSON text (official form)."""
        results = [
            {name: result[name] for name in result.formats()} | {"text": result.text}
            for result in self.results
        ]
        error = self.error.to_json() if self.error else None
        return json.dumps({"results": results, "logs": self.logs.to_json(), "error": error})


def event_line(event: Event) -> bytes:
    """Return the line that carries one event."""
    return encode_line(_event_fields(event))


def parse_event(line: bytes) -> Event | None:
    """Return the event of one line; None for a type that this client does not know.

    Raises:
        InvalidArgument: Not a JSON object, or a known type without its fields.
    """
    try:
        loaded: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("malformed event line") from error
    if not isinstance(loaded, dict):
        raise InvalidArgument("malformed event line")
    fields = cast("dict[str, Any]", loaded)
    try:
        return _read_event(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"malformed event: {str(fields.get('type'))[:64]}") from error


def _event_fields(event: Event) -> dict[str, Any]:
    match event:
        case ExecutionCount():
            return {"type": "number_of_executions", "execution_count": event.execution_count}
        case OutputMessage():
            kind = "stderr" if event.error else "stdout"
            return {"type": kind, "text": event.line, "timestamp": event.timestamp}
        case Result():
            shown = {name: getattr(event, name) for name in FORMATS if getattr(event, name) is not None}
            return {"type": "result", **shown, "extra": event.extra, "is_main_result": event.is_main_result}
        case ExecutionError():
            return {"type": "error", "name": event.name, "value": event.value, "traceback": event.traceback}
        case KeepAlive():
            return {"type": "keepalive"}
        case EndOfExecution():
            return {"type": "end_of_execution"}


def _read_event(fields: dict[str, Any]) -> Event | None:
    match fields.get("type"):
        case "stdout" | "stderr" as kind:
            return OutputMessage(str(fields["text"]), str(fields.get("timestamp", "")), kind == "stderr")
        case "result":
            shown = {name: fields.get(name) for name in FORMATS}
            return Result(
                **shown,
                is_main_result=bool(fields.get("is_main_result")),
                extra=dict(fields.get("extra") or {}),
            )
        case "error":
            return ExecutionError(str(fields["name"]), str(fields["value"]), str(fields["traceback"]))
        case "number_of_executions":
            return ExecutionCount(int(fields["execution_count"]))
        case "keepalive":
            return KeepAlive()
        case "end_of_execution":
            return EndOfExecution()
        case _:
            return None
