"""What a process printed last, kept so that whoever comes back to it can read what came in between.

E2B shows a caller that connects only what is printed from then on, and so do we, unless the caller asks for
more. The output is kept of every process all the same: the caller that will come back is the one whose
connection broke, and it did not know that in advance. Terminal multiplexers and the terminals of editors keep
theirs for the same reason.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LARGEST_BYTES = 256 * 1024
_LARGEST_SUM_BYTES = 4 << 20
"""Of all processes together: with many of them, each has a smaller share."""
_JOINED_BYTES = 4096
"""Pieces are joined up to this size: a program that prints byte by byte costs no more then."""
_OVERHEAD_BYTES = 256
"""Counted for each piece on top of its bytes: about what Python's objects around it take."""


class History:
    """The last pieces of the output of one process, every kind of output in the order in which it came."""

    def __init__(self) -> None:
        """Nothing was printed yet."""
        self._pieces: deque[tuple[Callable[[bytes], bytes], bytes | bytearray]] = deque()
        self._size = 0
        self._limit = _LARGEST_BYTES
        self.end = 0
        """Bytes printed so far, of all kinds together: the offset of the next byte."""
        self.begin = 0
        """Offset of the first byte that is still kept."""

    def add(self, frame: Callable[[bytes], bytes], piece: bytes) -> None:
        """Keep a piece, and let go of the oldest ones that there is no room for.

        Args:
            frame: Makes the frame that listeners get out of a piece; tells the kinds of output apart.
            piece: What was printed.
        """
        self.end += len(piece)
        self._size += len(piece)
        if self._pieces:
            last_frame, last = self._pieces[-1]
            if (
                last_frame is frame
                and isinstance(last, bytearray)
                and len(last) + len(piece) <= _JOINED_BYTES
            ):
                last += piece
                self._trim()
                return
        self._pieces.append((frame, bytearray(piece) if len(piece) < _JOINED_BYTES else piece))
        self._size += _OVERHEAD_BYTES
        self._trim()

    def nearest(self, offset: int) -> int:
        """The offset from which `frames` begins when it is asked for `offset`."""
        return min(max(offset, self.begin), self.end)

    def frames(self, offset: int) -> Iterator[bytes]:
        """Frames of what was printed from `offset` on, as far as it is kept."""
        at = self.begin
        for frame, piece in self._pieces:
            if at + len(piece) > offset:
                yield frame(bytes(piece[max(0, offset - at) :]))
            at += len(piece)

    def limit(self, size_bytes: int) -> None:
        """Keep no more than this from now on."""
        self._limit = size_bytes
        self._trim()

    def _trim(self) -> None:
        while self._size > self._limit:
            frame, piece = self._pieces.popleft()
            self._size -= len(piece) + _OVERHEAD_BYTES
            self.begin += len(piece)
            room = self._limit // 2 - self._size - _OVERHEAD_BYTES
            if room > 0:
                self._keep_end(frame, piece[-room:])

    def _keep_end(self, frame: Callable[[bytes], bytes], end: bytes | bytearray) -> None:
        """Put back the end of a piece that is as large as a good part of the limit."""
        self._pieces.appendleft((frame, end))
        self._size += len(end) + _OVERHEAD_BYTES
        self.begin -= len(end)


def share(histories: Iterable[History]) -> None:
    """Give each of these, which are all there are, its share of the memory that histories may take."""
    every = list(histories)
    for history in every:
        history.limit(min(_LARGEST_BYTES, _LARGEST_SUM_BYTES // len(every)))
