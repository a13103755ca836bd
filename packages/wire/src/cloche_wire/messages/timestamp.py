"""`google.protobuf.Timestamp` and its JSON form, RFC 3339."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_SECONDS = -62_135_596_800  # 0001-01-01T00:00:00Z
_MAX_SECONDS = 253_402_300_799  # 9999-12-31T23:59:59Z
_NANOS = 1_000_000_000
_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?(?:Z|([+-])(\d{2}):(\d{2}))\Z", re.ASCII
)


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """A point in time with the nanoseconds that file times have and a `datetime` cannot hold.

    Attributes:
        seconds: Seconds since 1970-01-01T00:00:00Z, rounded down.
        nanos: 0 to 999,999,999 nanoseconds after that second.

    Raises:
        ValueError: The time lies outside the years 1 to 9999, or nanos is out of range.
    """

    seconds: int = 0
    nanos: int = 0

    def __post_init__(self) -> None:
        if not (_MIN_SECONDS <= self.seconds <= _MAX_SECONDS and 0 <= self.nanos < _NANOS):
            raise ValueError(f"timestamp out of range: {self.seconds} s {self.nanos} ns")

    @classmethod
    def from_ns(cls, time_ns: int) -> Timestamp:
        """Return the time of `st_mtime_ns`, moved into the years that the format can express."""
        seconds, nanos = divmod(time_ns, _NANOS)
        if seconds < _MIN_SECONDS:
            return cls(_MIN_SECONDS, 0)
        if seconds > _MAX_SECONDS:
            return cls(_MAX_SECONDS, _NANOS - 1)
        return cls(seconds, nanos)

    @classmethod
    def from_datetime(cls, moment: datetime) -> Timestamp:
        """Return the same moment; a naive datetime is refused with ValueError."""
        if moment.tzinfo is None:
            raise ValueError("naive datetime")
        delta = moment - _EPOCH
        return cls(delta.days * 86_400 + delta.seconds, delta.microseconds * 1000)

    def to_datetime(self) -> datetime:
        """Return an aware UTC datetime; what is finer than a microsecond is cut off."""
        return _EPOCH + timedelta(seconds=self.seconds, microseconds=self.nanos // 1000)

    def to_rfc3339(self) -> str:
        """Return the time in UTC with 0, 3, 6 or 9 digits after the point, as proto3 JSON asks."""
        text = (_EPOCH + timedelta(seconds=self.seconds)).replace(tzinfo=None).isoformat()
        if not self.nanos:
            return text + "Z"
        digits = f"{self.nanos:09d}"
        while digits.endswith("000"):
            digits = digits[:-3]
        return f"{text}.{digits}Z"

    @classmethod
    def from_rfc3339(cls, text: str) -> Timestamp:
        """Read an RFC 3339 time with zone.

        Raises:
            ValueError: Not such a time, or out of range.
        """
        match = _RFC3339.match(text)
        if match is None:
            raise ValueError(f"not an RFC 3339 time: {text[:64]!r}")
        year, month, day, hour, minute, second = (int(match[index]) for index in range(1, 7))
        delta = datetime(year, month, day, hour, minute, second, tzinfo=UTC) - _EPOCH
        seconds = delta.days * 86_400 + delta.seconds
        if match[8]:
            offset_hours, offset_minutes = int(match[9]), int(match[10])
            if offset_hours > 23 or offset_minutes > 59:
                raise ValueError(f"bad offset: {text[:64]!r}")
            offset_s = offset_hours * 3600 + offset_minutes * 60
            seconds += offset_s if match[8] == "-" else -offset_s
        return cls(seconds, int((match[7] or "").ljust(9, "0")))
