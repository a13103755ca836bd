"""A clock that moves when the test says so."""

from datetime import UTC, datetime, timedelta


class FakeClock:
    """See `cloche_server.clock.Clock`."""

    def __init__(self) -> None:
        self._boot_s = 1000.0
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def boot_s(self) -> float:
        return self._boot_s

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let both clocks go on."""
        self._boot_s += seconds
        self._now += timedelta(seconds=seconds)
