"""The driver's end of a launcher, with a real one that is asked for nothing it could do."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from cloche_server.isolation.container import launcher
from cloche_server.isolation.launching.client import Launcher
from cloche_wire.errors import Internal

pytestmark = pytest.mark.anyio
_NO_REQUEST = b"x" * 5000
"""As long as one may be; it is answered by what is wrong with it."""


@pytest.fixture
def started() -> Iterator[Launcher]:
    made = Launcher(launcher.__name__)
    yield made
    made.close()


async def answer(asked: Launcher) -> str:
    with pytest.raises(Internal) as told:
        await asked.ask(_NO_REQUEST, [])
    return told.value.message


async def test_more_requests_than_its_socket_holds_wait_for_it(started: Launcher) -> None:
    """It stands still while they come, as on a machine that has no processor for it."""
    os.kill(started._process.pid, signal.SIGSTOP)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(answer(started)) for _ in range(100)]
        await asyncio.sleep(0)  # each has been sent by now, or waits for room
        os.kill(started._process.pid, signal.SIGCONT)
    assert {one.result() for one in asked} == {await answer(started)}


async def test_those_that_wait_for_one_that_is_killed_are_taken_by_the_next(started: Launcher) -> None:
    """What the first had been sent is answered by nobody, and that is told."""
    os.kill(started._process.pid, signal.SIGSTOP)
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(answer(started)) for _ in range(100)]
        await asyncio.sleep(0)
        os.kill(started._process.pid, signal.SIGKILL)
    answers = [one.result() for one in asked]
    assert set(answers) == {"the launcher ended", await answer(started)}
    assert answers.count("the launcher ended") < 50
