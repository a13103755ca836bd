"""What a checkpoint and a restore are to contexts: nothing, but for what siblings must not share."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from pathlib import Path

import anyio
import pytest
from tests.unit.kernels.conftest import Interpreter

pytestmark = pytest.mark.anyio


@pytest.fixture
async def interpreter(interpreter: Interpreter) -> Interpreter:
    """One whose sandbox may be written to disk."""
    interpreter.sandbox.is_saved = True
    return interpreter


async def test_code_whose_client_was_cut_off_runs_on_to_its_end(interpreter: Interpreter) -> None:
    """Twin: `test_deaths` has clients that go, whose code is interrupted."""
    code = "import time; seen = []; print('started', flush=True)\n"
    code += "for n in range(20):\n    time.sleep(0.01); seen.append(n); print('x' * 100_000)"
    interpreter.was_cut = True
    async with asyncio.timeout(20):
        await interpreter.abandon(code, until="started")
        assert await interpreter.text("len(seen)") == "20"
    assert b"cell runs on: its client was cut off" in interpreter.sandbox.activity.since(0)


async def test_code_that_was_cut_off_before_its_turn_never_starts(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    interpreter.was_cut = True
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    await interpreter.abandon(f"ran = 0; print('started', flush=True); open({str(fifo)!r}).read()", "started")
    waiting = await interpreter.stream("ran = 1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(waiting)
    await waiting.aclose()
    async with await anyio.open_file(fifo, "w"):  # only now may the first one end
        pass
    assert await interpreter.text("ran") == "0"


def _restored(interpreter: Interpreter) -> Awaitable[None]:
    interpreter.sandbox.apply({"restored": True})
    (renew,) = interpreter.sandbox.on_restore
    return renew()


SEEDED = "import random, uuid, tempfile; random.seed(7); tempfile.gettempprefix(); node = uuid.getnode()"
LATER = "[random.random(), random.random()]"
WITHOUT_RENEWAL = "r = random.Random(7); [r.random(), r.random()]"


async def test_an_idle_kernel_has_randomness_of_its_own_after_a_restore(interpreter: Interpreter) -> None:
    await interpreter.run(SEEDED + "; mine = random.Random(7)")
    await _restored(interpreter)
    assert await interpreter.text(LATER) != await interpreter.text(WITHOUT_RENEWAL)
    assert await interpreter.text("uuid.uuid1().version, uuid.uuid1() < uuid.uuid1()") == "(1, True)"
    # A generator that the user has made is the user's: twin, and a limit that docs/kernels.md tells.
    assert await interpreter.text("[mine.random(), mine.random()]") == await interpreter.text(WITHOUT_RENEWAL)


@pytest.mark.parametrize(
    "waiting",
    [
        "open(fifo).read()",
        "import os, select; select.select([os.open(fifo, os.O_RDONLY)], [], [])",
        "import time; t = time.monotonic(); time.sleep(0.2); assert time.monotonic() - t >= 0.2\n"
        "open(fifo).read()",
        "import subprocess; subprocess.run(['cat', fifo], check=True)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); open(fifo).read()",
    ],
)
async def test_a_cell_that_runs_is_renewed_before_the_answer_and_not_disturbed(
    interpreter: Interpreter, tmp_path: Path, waiting: str
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = f"{SEEDED}; fifo = {str(fifo)!r}; print('started', flush=True)\n{waiting}\n{LATER}"
    events = b""
    async with asyncio.timeout(20):
        async for piece in await interpreter.stream(code):
            events += piece
            if b"started" in piece:
                await _restored(interpreter)
                async with await anyio.open_file(fifo, "w") as file:
                    await file.write("x")
    assert b'"type":"result"' in events
    assert b'"type":"error"' not in events
    assert (await interpreter.text(WITHOUT_RENEWAL) or "?").encode() not in events


async def test_a_kernel_that_cannot_answer_is_renewed_before_its_next_cell(interpreter: Interpreter) -> None:
    await interpreter.run(SEEDED)
    pid = int(await interpreter.text("import os; os.getpid()") or "")
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(5):
        await _restored(interpreter)
    os.kill(pid, signal.SIGCONT)
    assert await interpreter.text(LATER) != await interpreter.text(WITHOUT_RENEWAL)


async def test_a_dead_kernel_does_not_hinder_a_restore(interpreter: Interpreter) -> None:
    pid = int(await interpreter.text("import os; os.getpid()") or "")
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        await _restored(interpreter)
    assert (await interpreter.run("1")).error is not None
    assert await interpreter.text("1") == "1"


async def test_bash_has_randomness_of_its_own_after_a_restore(interpreter: Interpreter) -> None:
    async def drawn(*, restored: bool) -> list[str]:
        await interpreter.run("RANDOM=7", language="bash")
        if restored:
            await _restored(interpreter)
        return (await interpreter.run("echo $RANDOM $RANDOM $RANDOM", language="bash")).logs.stdout

    assert await drawn(restored=False) == await drawn(restored=False)
    assert await drawn(restored=True) != await drawn(restored=False)


async def test_programs_that_cells_start_hold_no_connection_to_the_agent(interpreter: Interpreter) -> None:
    await interpreter.run("!ls -l /proc/self/fd > /dev/null")
    listed = await interpreter.text("import subprocess; subprocess.getoutput('ls -l /proc/self/fd')")
    assert "socket:" not in (listed or "socket:")


async def test_programs_that_know_the_key_of_their_parent_still_do_after_a_restore(
    interpreter: Interpreter,
) -> None:
    code = "import multiprocessing as m; before = bytes(m.current_process().authkey)\n"
    assert (
        await interpreter.run(code + "manager = m.Manager(); shared = manager.list([manager.list([1])])")
    ).error is None
    await _restored(interpreter)
    assert await interpreter.text("shared[0][0], bytes(m.current_process().authkey) == before") == "(1, True)"
    await interpreter.run("manager.shutdown()")
    await _restored(interpreter)
    assert await interpreter.text("bytes(m.current_process().authkey) == before") == "False"
