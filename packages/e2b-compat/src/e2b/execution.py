"""What running code gives, as the documents print it."""

from __future__ import annotations

import cloche


class Execution(cloche.Execution):
    """All that one run of code gave; `text` is never empty-handed when something was printed."""

    __slots__ = ()

    @classmethod
    def of(cls, execution: cloche.Execution) -> Execution:
        """Return the same run under this class."""
        return cls(execution.results, execution.logs, execution.error, execution.execution_count)

    @property
    def text(self) -> str | None:
        """Text of the main result; without one, what was printed, less its last newline; else None."""
        main = next((result for result in self.results if result.is_main_result), None)
        if main is not None:
            return main.text
        return "".join(self.logs.stdout).removesuffix("\n") or None
