"""Waiting for something outside to become true: the one place where tests look again and again."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(look: Callable[[], T], *, within_s: float, what: str, every_s: float = 0.02) -> T:
    """Return the first true answer of `look`.

    Raises:
        AssertionError: None came in time; the message says what was waited for, and the last answer.
    """
    deadline = time.monotonic() + within_s
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}: {answer!r}")
        time.sleep(every_s)
