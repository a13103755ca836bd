"""Blocking steps, on threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking step on a thread, to its end even when the caller is cancelled.

    Half a step has no undo.
    """
    step = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait({step})  # an undo must not begin while the step still runs
        if not step.cancelled():
            step.exception()  # marks it as seen; the cancellation is what is told
        raise
