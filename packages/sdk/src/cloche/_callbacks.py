"""Handing values to the caller's functions."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Callback: TypeAlias = Callable[[T], object]
AsyncCallback: TypeAlias = Callable[[T], Awaitable[object] | object]


def deliver(callback: Callback[T] | None, value: T) -> None:
    """Call the function, if there is one."""
    if callback is not None:
        callback(value)


async def deliver_async(callback: AsyncCallback[T] | None, value: T) -> None:
    """Call the function, if there is one, and await what it returns if that can be awaited."""
    if callback is None:
        return
    outcome = callback(value)
    if inspect.isawaitable(outcome):
        await outcome
