"""Waiting for something outside to become true: the one place where tests look again and again."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

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


async def until_true(look: Callable[[], Awaitable[T]], *, within_s: float, what: str) -> T:
    """The same for what is asked within an event loop."""
    deadline = time.monotonic() + within_s
    while not (answer := await look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}: {answer!r}")
        await anyio.sleep(0.01)
    return answer
