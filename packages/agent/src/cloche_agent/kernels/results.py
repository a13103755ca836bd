"""What a kernel says, as the event lines that clients read (`cloche_wire.execution`)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from cloche_agent.kernels.channel import KernelProtocolError, number_of, text_of
from cloche_wire.execution import (
    Event,
    ExecutionCount,
    ExecutionError,
    OutputMessage,
    Result,
    event_line,
)

if TYPE_CHECKING:
    from cloche_agent.kernels.channel import Message

_TEXT_FIELDS: Final = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/javascript": "javascript",
}
_OBJECT_FIELDS: Final = {"e2b/data": "data", "e2b/chart": "chart"}


def line_of(message: Message) -> bytes:
    """The event line of one message of a run.

    Raises:
        KernelProtocolError: It is of no known kind, or lacks what its kind has.
    """
    event = _event(message)
    line = event_line(event)
    # A lone surrogate is written as \udXXX, which strict readers refuse.
    return event_line(_event(cast("Message", _repaired(message)))) if b"\\ud" in line else line


def _event(message: Message) -> Event:
    match message.get("type"):
        case "started":
            return ExecutionCount(number_of(message, "count"))
        case "stdout" | "stderr" as kind:
            now = datetime.now(UTC).isoformat()
            return OutputMessage(text_of(message, "text"), now, kind == "stderr")
        case "result":
            bundle = message.get("bundle")
            if not isinstance(bundle, dict):
                raise KernelProtocolError("result without a bundle")
            return result_of(cast("dict[str, object]", bundle), is_main=message.get("main") is True)
        case "error":
            name, value = text_of(message, "name"), text_of(message, "value")
            return ExecutionError(name, value, text_of(message, "traceback"))
        case kind:
            raise KernelProtocolError(f"unknown message: {str(kind)[:64]}")


def result_of(bundle: dict[str, object], *, is_main: bool) -> Result:
    """A MIME bundle as a result; wire.md 4.1.

    A representation of the wrong type (text that is no string) is left out, for clients would fail on it.
    """
    fields: dict[str, Any] = {}
    extra: dict[str, object] = {}
    for mime, value in bundle.items():
        if field := _TEXT_FIELDS.get(mime):
            if isinstance(value, str):
                fields[field] = value
        elif field := _OBJECT_FIELDS.get(mime):
            if isinstance(value, dict):
                fields[field] = value
        elif mime == "application/json":
            fields["json"] = value
        else:
            extra[mime] = value
    if "text" in fields:
        fields["text"] = _unquoted(fields["text"])
    return Result(**fields, is_main_result=is_main, extra=extra)


def _unquoted(text: str) -> str:
    """The repr of a string without its quotes, as E2B's interpreter shows it."""
    return text[1:-1] if text[:1] in ("'", '"') and text[-1:] == text[0] else text


def _repaired(value: object) -> object:
    """`value` with pairs of surrogates joined, and lone ones replaced."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
