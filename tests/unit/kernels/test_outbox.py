"""What a Python kernel gathers before it sends, and what it holds back."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator

import pytest

from cloche_agent.kernels.python_kernel import outbox
from cloche_agent.kernels.python_kernel.outbox import GATHER_S, Outbox

WAITS_S = 10


class Sent:
    """The agent's end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._data = b""

    def next(self) -> tuple[str, str]:
        """The next piece of text: of which stream, and what."""
        frame = self.frame()
        return frame["type"], frame["text"]

    def frame(self) -> dict[str, str]:
        """Whatever comes next."""
        frame: dict[str, str] = json.loads(self._read(int.from_bytes(self._read(4), "big")))
        return frame

    def _read(self, size: int) -> bytes:
        while len(self._data) < size:
            self._data += self._end.recv(4096)
        read, self._data = self._data[:size], self._data[size:]
        return read

    def is_silent(self) -> bool:
        """Whether nothing comes for several times as long as text is gathered."""
        return not self._data and not select.select([self._end], [], [], 5 * GATHER_S)[0]


@pytest.fixture
def ends() -> Iterator[tuple[Outbox, Sent]]:
    """One that sends, within a run."""
    ours, its = socket.socketpair()
    with ours, its:
        ours.settimeout(WAITS_S)
        made = Outbox(its)
        made.begin(1)
        made.start()
        sent = Sent(ours)
        yield made, sent
        made.end(1)
        while sent.frame()["type"] != "done":  # it ends its process when it cannot send
            pass


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is waited for until it has its end."""
    monkeypatch.setattr(outbox, "LINE_S", 600.0)


@pytest.mark.usefixtures("patient")
def test_a_print_that_is_interrupted_between_its_two_writes_is_one_piece(ends: tuple[Outbox, Sent]) -> None:
    """As where another process has the processor for a while."""
    kernel, sent = ends
    kernel.put_text("stdout", "Hello")
    assert sent.is_silent()
    kernel.put_text("stdout", "\n")
    assert sent.next() == ("stdout", "Hello\n")


@pytest.mark.usefixtures("patient")
def test_whole_lines_do_not_wait_for_the_one_that_has_no_end(ends: tuple[Outbox, Sent]) -> None:
    kernel, sent = ends
    kernel.put_text("stderr", "one\ntwo\nthr")
    assert sent.next() == ("stderr", "one\ntwo\n")
    assert sent.is_silent()
    kernel.put_text("stderr", "ee\n")
    assert sent.next() == ("stderr", "three\n")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("act", ["flush", "more text", "other stream"])
def test_what_is_flushed_or_followed_by_something_else_waits_for_nothing(
    ends: tuple[Outbox, Sent], act: str
) -> None:
    kernel, sent = ends
    kernel.put_text("stdout", "name? ")
    assert sent.is_silent()
    if act == "flush":
        kernel.flush()
    elif act == "more text":
        kernel.put_text("stdout", "x" * outbox.FRAME_CHARACTERS)
    else:
        kernel.put_text("stderr", "said\n")
    assert sent.next()[1].startswith("name? ")


def test_a_line_that_gets_no_end_is_sent_all_the_same(ends: tuple[Outbox, Sent]) -> None:
    kernel, sent = ends
    kernel.put_text("stdout", "...")
    assert sent.next() == ("stdout", "...")
