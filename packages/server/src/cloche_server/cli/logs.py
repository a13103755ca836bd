"""Where the server's words go: lines on standard error, or files that cannot grow without end."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor

LEVEL_VARIABLE = "CLOCHE_LOG_LEVEL"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

MAX_FILE_BYTES = 8 * 1024 * 1024
"""A full file becomes `NAME.log.1`, in place of the one before it: two files are the most that is kept."""


def configure(component: str) -> None:
    """Log as JSON lines, or readably where a person watches a terminal; `component` is in every line."""
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if sys.stderr.isatty():
        processors.append(structlog.dev.ConsoleRenderer())
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            LEVELS.get(os.environ.get(LEVEL_VARIABLE, ""), logging.INFO)
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(component=component)


class BoundedFile:
    """A log file with an upper size; written by one process, bytes in, whole lines not needed."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """Open for appending; the folder exists."""
        self._path = path
        self._max_bytes = max_bytes
        self._file = path.open("ab", buffering=0)

    def write(self, chunk: bytes) -> None:
        """Append. A full disk loses lines rather than stopping the server."""
        try:
            if self._file.tell() + len(chunk) > self._max_bytes:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._path.open("ab", buffering=0)
            self._file.write(chunk)
        except OSError:
            return

    def close(self) -> None:
        """Close the file."""
        self._file.close()
