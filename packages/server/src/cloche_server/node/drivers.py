"""The drivers of one node: each sandbox has its own, and one that nobody has asked for costs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from cloche_server.isolation.base import Driver, Program
from cloche_wire.errors import Unavailable, UnsupportedOption


class Drivers:
    """All that this version knows, by name. What a machine lacks is said to whoever asks for it."""

    def __init__(self, default: str, known: Sequence[Driver]) -> None:
        """Take them, none prepared yet.

        Args:
            default: Name of the driver of sandboxes that ask for none.
            known: All of them; what is left of their sandboxes can be ended by each, prepared or not.
        """
        self.default = default
        self._known = {driver.capabilities().name: driver for driver in known}
        self._prepared: set[str] = set()
        self._program: Program | None = None

    def prepare(self, program: Program) -> None:
        """Make the default one ready, once per start of the node; the others follow when they are needed.

        Raises:
            Unavailable: The machine lacks what it needs.
        """
        self._program = program
        self._prepare(self.default)

    def of(self, isolation: str) -> Driver:
        """The driver of sandboxes that there are; it need not be able to start any.

        Raises:
            UnsupportedOption: This version has none of that name.
        """
        if isolation not in self._known:
            raise UnsupportedOption(f"no such isolation: {isolation}")
        return self._known[isolation]

    def ready(self, isolation: str) -> Driver:
        """The driver for a new sandbox, or one that goes on. Blocks for some 50 ms when it is the first.

        Raises:
            UnsupportedOption: There is none of that name, or this machine lacks what it needs; never is a
                weaker one taken in its place.
        """
        driver = self.of(isolation)
        if isolation not in self._prepared:
            try:
                self._prepare(isolation)
            except Unavailable as error:
                raise UnsupportedOption(
                    f"isolation '{isolation}' is not available on this server: {error.message}",
                    hint=error.hint,
                ) from error
        return driver

    def known(self) -> tuple[Driver, ...]:
        """All, prepared or not."""
        return tuple(self._known.values())

    def close(self) -> None:
        """Let go of the machine at the end of the node; running sandboxes stay."""
        for isolation in self._prepared:
            self._known[isolation].close()

    def _prepare(self, isolation: str) -> None:
        self.of(isolation).prepare(self._program)
        self._prepared.add(isolation)
