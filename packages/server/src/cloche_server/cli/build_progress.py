"""What a build shows: its log line by line, and on a terminal how long each step takes, and has taken."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from rich.console import Console

_STEP = re.compile(r"\[(?:stage \S+ )?\d+/\d+\] (CACHED )?")
_STYLES = {"warn": "yellow", "error": "bold red", "debug": "dim"}
_SHOWN_S = 0.1
"""What takes less is not worth a word."""


class BuildProgress:
    """Shows the entries of a log as they come. What is no terminal gets plain lines and nothing else."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is shown until the block is entered."""
        self._console = console
        self._clock = clock
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._step_began_s: float | None = None
        if console.is_terminal:
            columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            self._bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Self:
        """Take the last line of a terminal."""
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("waiting for the server")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self._end_step()
        if self._bar is not None:
            self._bar.stop()

    def show(self, entry: dict[str, Any]) -> None:
        """Show one entry of the log."""
        text, style = str(entry["message"]), _STYLES.get(entry["level"], "")
        step = _STEP.match(text)
        if step or entry.get("step") == "finalize":
            self._end_step()
        if step:
            is_cached = bool(step[1])
            style = "dim" if is_cached else "bold"
            self._step_began_s = None if is_cached else self._clock()
        if self._bar is not None and (step or entry.get("step") in ("base", "finalize")):
            width = max(20, self._console.width - 20)
            self._bar.reset(self._task, description=escape(text[:width]))
        self.line(text, style)

    def line(self, text: str, style: str = "") -> None:
        """Show one line of our own."""
        self._console.print(escape(text), style=style or None, highlight=False, soft_wrap=True)

    def _end_step(self) -> None:
        """Say how long the step that ran has taken; on a terminal alone, since a file is read by programs."""
        began_s, self._step_began_s = self._step_began_s, None
        if began_s is None or self._bar is None:
            return
        took_s = self._clock() - began_s
        if took_s >= _SHOWN_S:
            self.line(f"  took {took_s:.1f} s", "dim")
