"""What one sandbox has used over its life, in at most 30 KiB.

A point is 18 bytes: the last 20 minutes as they were taken, every 5 s, and before that one a minute for the
longest life a sandbox may have, 24 hours.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cloche_server.node.messages import MetricPoint

FINE_EVERY_S = 5
FINE_POINTS = 240
FINE_PER_COARSE = 12
COARSE_POINTS = 1440

_POINT = struct.Struct("<IIIIH")
"""Unix time, KiB of memory, of cache and of disk, tenths of a percent of CPU."""
_LARGEST_U32 = 0xFFFF_FFFF
_LARGEST_U16 = 0xFFFF


class History:
    """Points of one sandbox, oldest first."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._coarse = bytearray()
        self._fine = bytearray()

    def add(self, point: MetricPoint) -> None:
        """Take one more point; the oldest ones are put together or dropped."""
        self._fine += _packed(point)
        if len(self._fine) > FINE_POINTS * _POINT.size:
            oldest = FINE_PER_COARSE * _POINT.size
            self._coarse += _packed(_merged([*_unpacked(self._fine[:oldest])]))
            del self._fine[:oldest]
            del self._coarse[: max(0, len(self._coarse) - COARSE_POINTS * _POINT.size)]

    def points(self, start_s: int = 0, end_s: int = _LARGEST_U32) -> list[MetricPoint]:
        """Every point from `start_s` to `end_s`, both included, by Unix time."""
        return [
            point
            for part in (self._coarse, self._fine)
            for point in _unpacked(part)
            if start_s <= point.at_s <= end_s
        ]

    def latest(self) -> list[MetricPoint]:
        """The newest point, or nothing."""
        return [*_unpacked(self._fine[-_POINT.size :])]

    @property
    def size_bytes(self) -> int:
        """What the points take."""
        return len(self._coarse) + len(self._fine)


def _packed(point: MetricPoint) -> bytes:
    sizes = (point.memory_used_bytes, point.memory_cache_bytes, point.disk_used_bytes)
    return _POINT.pack(
        point.at_s,
        *(min(size >> 10, _LARGEST_U32) for size in sizes),
        min(round(10 * point.cpu_used_pct), _LARGEST_U16),
    )


def _unpacked(part: bytearray) -> Iterator[MetricPoint]:
    for at_s, memory, cache, disk, cpu in _POINT.iter_unpack(part):
        yield MetricPoint(at_s, cpu / 10, memory << 10, cache << 10, disk << 10)


def _merged(points: list[MetricPoint]) -> MetricPoint:
    """CPU is the mean; memory the largest, since that is what a limit is held against."""
    return MetricPoint(
        points[-1].at_s,
        sum(point.cpu_used_pct for point in points) / len(points),
        max(point.memory_used_bytes for point in points),
        max(point.memory_cache_bytes for point in points),
        points[-1].disk_used_bytes,
    )
