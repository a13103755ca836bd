"""What a checkpoint and a restore are to contexts: nothing, but for what siblings must not share."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.kernels.conftest import Interpreter

pytestmark = pytest.mark.anyio


async def test_code_whose_client_was_cut_off_runs_on_to_its_end(interpreter: Interpreter) -> None:
    """Twin: `test_deaths` has clients that go, whose code is interrupted."""
    code = "import time; seen = []; print('started', flush=True)\n"
    code += "for n in range(20):\n    time.sleep(0.01); seen.append(n); print('x' * 100_000)"
    interpreter.was_cut = True
    async with asyncio.timeout(20):
        await interpreter.abandon(code, until="started")
        assert await interpreter.text("len(seen)") == "20"
    assert b"cell runs on: its client was cut off" in interpreter.sandbox.activity.since(0)


async def test_code_that_was_cut_off_before_its_turn_never_starts(interpreter: Interpreter) -> None:
    interpreter.was_cut = True
    await interpreter.abandon(
        "import time; ran = 0; print('started', flush=True); time.sleep(0.1)", "started"
    )
    waiting = await interpreter.stream("ran = 1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(waiting)
    await waiting.aclose()
    assert await interpreter.text("ran") == "0"
