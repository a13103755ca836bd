"""What cells do to their kernel, and what clients do to their cells: the context answers afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.support.waiting import until
from tests.unit.kernels.conftest import Interpreter, bound_sandbox, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(3)", "the kernel ended with exit code 3"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "the kernel was killed by SIGKILL, perhaps for lack of memory",
        ),
        ("import ctypes; ctypes.string_at(0)", "the kernel was killed by SIGSEGV"),
        (
            "import socket, time; socket.socket(fileno=3).shutdown(2); time.sleep(60)",
            "the kernel ",  # closed its connection, or ended when it could not send
        ),
    ],
)
async def test_a_dying_kernel_is_reported_and_replaced(
    interpreter: Interpreter, code: str, reason: str
) -> None:
    execution = await interpreter.run("print('before', flush=True)\n" + code)
    assert execution.error is not None
    assert execution.error.name == "ContextRestarting"
    assert execution.error.value.startswith(f"Context was restarted: {reason}")
    after = await interpreter.run("1 + 1")
    assert (after.text, after.execution_count) == ("2", 1)


async def test_a_kernel_whose_child_lives_on_is_seen_to_die(interpreter: Interpreter) -> None:
    execution = await interpreter.run(
        "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(5); os._exit(0)\nos._exit(4)"
    )
    assert execution.error is not None
    assert execution.error.value == "Context was restarted: the kernel ended with exit code 4"
    assert await interpreter.text("2") == "2"


async def test_a_death_between_runs_is_told_once(interpreter: Interpreter) -> None:
    pid = await interpreter.text("x = 1; import os; os.getpid()")
    os.kill(int(pid or ""), signal.SIGKILL)
    execution = await interpreter.run("x")
    assert execution.error is not None
    assert execution.error.name == "ContextRestarting"
    assert await interpreter.text("'x' in globals()") == "False"


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "exit(3)", "quit(3)", "raise SystemExit(3)"])
async def test_exit_ends_the_cell_and_not_the_context(interpreter: Interpreter, code: str) -> None:
    execution = await interpreter.run(f"x = 5\n{code}\nx = 6")
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("SystemExit", "3")
    assert execution.logs.stderr == []
    assert await interpreter.text("x") == "5"


async def test_a_restart_ends_the_run_in_progress(interpreter: Interpreter) -> None:
    stream = await interpreter.stream("import time\nprint('started', flush=True)\ntime.sleep(60)")
    pieces = b""
    async with asyncio.TaskGroup() as tasks:
        async for piece in stream:
            if b"started" in piece:
                tasks.create_task(interpreter.call("POST", "/contexts/default/restart"))
            pieces += piece
    assert b"Context was restarted: its restart was asked for" in pieces
    assert await interpreter.text("1") == "1"


async def test_removing_a_context_ends_the_run_in_progress(interpreter: Interpreter) -> None:
    context = await interpreter.new_context()
    code = "import time\nprint('started', flush=True)\ntime.sleep(60)"
    pieces = b""
    async for piece in await interpreter.stream(code, context_id=context):
        if b"started" in piece:
            await interpreter.call("DELETE", f"/contexts/{context}")
        pieces += piece
    assert b"UnexpectedEndOfExecution" in pieces
    assert pieces.endswith(b'{"type":"end_of_execution"}\n')


# --- interrupts

PRINT_AND = "print('started', flush=True)\n"


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import asyncio; await asyncio.sleep(60)",
        "import asyncio, time\nasync def f(): time.sleep(60)\nawait f()",
        "!sleep 60",
        "import os; os.system('sleep 60')",
        "import subprocess; subprocess.run(['sleep', '60'])",
        "while True: print('x' * 10000)",
        "%%bash\nsleep 60",
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(60)",
    ],
)
async def test_a_client_that_goes_away_interrupts_its_code(interpreter: Interpreter, code: str) -> None:
    cell_magic = code.startswith("%%")
    await interpreter.run("kept = 1")
    if cell_magic:
        await interpreter.abandon("%%bash\necho started\nsleep 60", until="started")
    else:
        await interpreter.abandon(PRINT_AND + code, until="started")
    async with asyncio.timeout(10):
        execution = await interpreter.run("kept")
    if "SIG_DFL" in code:  # the user's own wish: the signal kills
        assert execution.error is not None
        assert execution.error.name == "ContextRestarting"
    else:
        assert (execution.text, execution.logs.stdout) == ("1", [])


async def test_code_that_refuses_to_be_interrupted_loses_its_kernel(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloche_agent.kernels.run._INTERRUPT_PAUSES_S", (0.05, 0.05))
    code = "while True:\n    try:\n        import time; time.sleep(60)\n    except KeyboardInterrupt: pass"
    await interpreter.abandon(PRINT_AND + code, until="started")
    execution = await interpreter.run("1")
    assert execution.error is not None
    assert "could not be interrupted" in execution.error.value
    assert await interpreter.text("1") == "1"


async def test_an_interrupted_awaiting_cell_does_not_go_on_later(interpreter: Interpreter) -> None:
    code = (
        "import asyncio\nn = 0\nwhile True:\n    n += 1\n    print('started')\n    await asyncio.sleep(0.01)"
    )
    await interpreter.abandon(code, until="started")
    before = await interpreter.text("n")
    assert await interpreter.text("await asyncio.sleep(0.1); n") == before


async def test_a_server_left_by_an_earlier_cell_survives_an_interrupt(interpreter: Interpreter) -> None:
    await interpreter.run("import subprocess; server = subprocess.Popen(['sleep', '60'])")
    await interpreter.abandon(PRINT_AND + "import time; time.sleep(60)", until="started")
    assert (
        await interpreter.text("alive = server.poll() is None; server.kill(); server.wait(); alive") == "True"
    )


async def test_a_client_gone_before_its_turn_leaves_no_trace(interpreter: Interpreter) -> None:
    stream = await interpreter.stream("x = 1")
    await stream.aclose()
    assert await interpreter.text("'x' in globals()") == "False"


# --- kernels that cannot start


async def test_a_missing_package_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\nexec /usr/bin/env -i /usr/bin/python3 -S -I "$@"\n')
    python.chmod(0o755)
    async with serving(bound_sandbox(PATH=str(tmp_path))) as interpreter:
        status, text = await interpreter.body("POST", "/execute", {"code": "1"})
    assert status == 500
    assert "IPython" in text
    assert "pip install ipython" in text


async def test_a_template_without_python_is_told_so(tmp_path: Path) -> None:
    async with serving(bound_sandbox(PATH=str(tmp_path))) as interpreter:
        status, text = await interpreter.body("POST", "/execute", {"code": "1"})
    assert status == 500
    assert "python3" in text


async def test_a_kernel_that_dies_at_once_is_explained(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho no luck today >&2\nexit 5\n")
    python.chmod(0o755)
    async with serving(bound_sandbox(PATH=str(tmp_path))) as interpreter:
        status, text = await interpreter.body("POST", "/execute", {"code": "1"})
    assert (status, text) == (500, "the kernel ended with exit code 5 before it was ready: no luck today")


async def test_a_kernel_that_hangs_at_its_start_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloche_agent.kernels.kernel.START_DEADLINE_S", 0.2)
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    python.chmod(0o755)
    async with serving(bound_sandbox(PATH=str(tmp_path))) as interpreter:
        status, text = await interpreter.body("POST", "/execute", {"code": "1"})
    assert status == 500
    assert "was not ready within" in text


# --- kernels that lie


@pytest.mark.parametrize(
    "sent",
    [
        r"b'\xff\xff\xff\xff'",
        r"b'\0\0\0\3abc'",
        r"b'\0\0\0\2[]'",
        r"b'\0\0\0\2{}'",
        r"b'\0\0\0\x11{\"type\":\"stdout\"}'",
        r"b'\0\4\0\0' + b'[' * 262144",
    ],
)
async def test_a_kernel_that_breaks_the_protocol_is_replaced(interpreter: Interpreter, sent: str) -> None:
    code = f"import os, time\nos.write(3, {sent})\ntime.sleep(60)"
    execution = await interpreter.run(code)
    assert execution.error is not None
    assert "broke the protocol" in execution.error.value
    assert await interpreter.text("1") == "1"


def test_no_kernel_is_left_behind() -> None:
    """Runs last in this file: every service above has killed its kernels, which takes effect soon after."""
    until(lambda: not _kernels(), within_s=10, what="the end of all kernels")


def _kernels() -> list[Path]:
    own = str(os.getpid())
    children = [path for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == own]
    return [path for path in children if "python_kernel" in _command(path.parent)]


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def _parent(stat: Path) -> str:
    try:
        return stat.read_text().rpartition(")")[2].split()[1]
    except OSError:
        return ""
