"""What is killed over the wire is gone when that has been answered."""

import os
import signal
from collections.abc import AsyncIterator

import pytest

from cloche_agent.process.running import RunningProcess
from cloche_agent.process.spawn import Reaper, SpawnRequest, spawn
from cloche_wire.messages.process import ProcessConfig

pytestmark = pytest.mark.anyio


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    made = Reaper()
    made.install()
    yield made
    made.remove()


async def test_a_killed_process_has_no_pid_any_more(reaper: Reaper) -> None:
    """Neither as one that is about to end nor as one that nobody has collected."""
    mine = os.geteuid(), os.getegid(), tuple(os.getgroups())
    pid = spawn(SpawnRequest(["sleep", "20"], {"PATH": os.environ["PATH"]}, "/", *mine))
    await RunningProcess(pid, ProcessConfig(cmd="sleep"), None, reaper=reaper).send_signal(signal.SIGKILL)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
