"""What code prints: from Python, from C, from children and threads; in order, bounded, never in the way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.kernels.conftest import Interpreter

pytestmark = pytest.mark.anyio


async def printed(interpreter: Interpreter, code: str) -> tuple[str, str]:
    execution = await interpreter.run(code)
    assert execution.error is None, execution.error
    return "".join(execution.logs.stdout), "".join(execution.logs.stderr)


async def test_one_print_is_one_piece(interpreter: Interpreter) -> None:
    assert (await interpreter.run("print('Hello,', 'E2B!')")).logs.stdout == ["Hello, E2B!\n"]
    execution = await interpreter.run("import sys; print(1, file=sys.stderr)")
    assert (execution.logs.stdout, execution.logs.stderr) == ([], ["1\n"])


async def test_output_arrives_while_the_code_runs(interpreter: Interpreter, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)"
    code = f"import pathlib, time\nprint('first')\n{wait}"
    async for piece in await interpreter.stream(code):
        if b"first" in piece:
            go.touch()
    assert go.exists()


async def test_children_and_c_code_keep_the_order_of_the_prints(interpreter: Interpreter) -> None:
    code = """
import os, subprocess, sys
print('1 print')
os.system('echo 2 system')
print('3 print')
os.write(1, b'4 write\\n')
sys.stdout.buffer.write(b'5 buffer\\n')
subprocess.run(['echo', '6 run'])
!echo 7 shell; echo 8 its stderr >&2
print('9 print')
"""
    out, _ = await printed(interpreter, code)
    assert [line.split()[0] for line in out.splitlines()] == list("123456789")


async def test_magics_print_and_keep_their_values(interpreter: Interpreter) -> None:
    assert await interpreter.text("files = !echo a; echo b\nfiles") == "['a', 'b']"
    assert await printed(interpreter, "!exit 7\nprint(_exit_code)") == ("7\n", "")
    assert await printed(interpreter, "%%bash\necho out\necho err >&2") == ("out\n", "err\n")
    assert await printed(interpreter, "%%capture kept\nprint(1)\n!echo 2") == ("", "")
    assert await interpreter.text("kept.stdout") == "1\\n2\\n"
    assert await interpreter.text("%env HOME") is not None
    assert "Docstring" in (await printed(interpreter, "len?"))[0]


async def test_bytes_that_are_no_text_are_replaced(interpreter: Interpreter) -> None:
    out, _ = await printed(
        interpreter, r"import os; os.write(1, b'a\xff\xe2\x82\xac\n'); print('\udc80\U0001f600')"
    )
    assert out.splitlines() == ["a�€", "�\U0001f600"]


async def test_separators_of_lines_that_are_no_newline_do_not_cut_events(interpreter: Interpreter) -> None:
    stream = [piece async for piece in await interpreter.stream(r"print('a\u2028b\x85c\x0bd\x1ee')")]
    text = b"".join(stream).decode()
    assert len(text.splitlines()) == text.count("\n")


async def test_input_is_refused_with_a_clear_error(interpreter: Interpreter) -> None:
    for code in ("input('name? ')", "import getpass; getpass.getpass()"):
        execution = await interpreter.run(code)
        assert execution.error is not None
        assert execution.error.name == "StdinNotImplementedError"
        assert "cannot be answered" in execution.error.value
    assert await interpreter.text("import sys; sys.stdin.read()") == ""


async def test_threads_and_children_may_print_after_the_cell(interpreter: Interpreter) -> None:
    code = """
import threading, time
stop = threading.Event()
def chatter():
    while not stop.is_set():
        print('from the thread')
        time.sleep(0.001)
thread = threading.Thread(target=chatter)
thread.start()
!while true; do echo from the child; sleep 0.01; done &
"""
    assert (await interpreter.run(code)).error is None
    for _ in range(20):
        assert (await interpreter.run("1 + 1")).text == "2"
    assert (await interpreter.run("stop.set(); thread.join(); 3")).text == "3"


async def test_forked_children_print_through_their_parent(interpreter: Interpreter) -> None:
    code = """
import multiprocessing, os
context = multiprocessing.get_context('fork')
workers = [context.Process(target=print, args=(f'worker {n}',)) for n in range(3)]
for worker in workers: worker.start()
for worker in workers: worker.join()
if os.fork() == 0:
    print('child', flush=True)
else:
    os.wait()
    print('parent')
"""
    out, _ = await printed(interpreter, code)
    assert sorted(out.splitlines()) == ["child", "parent", "worker 0", "worker 1", "worker 2"]
    assert await interpreter.text("7") == "7"


async def test_100_mib_stream_through_with_bounded_memory(interpreter: Interpreter) -> None:
    pid = await interpreter.text("import os; os.getpid()")
    before = resident_mib(pid)
    text = 0
    peak = 0.0
    async for piece in await interpreter.stream("for _ in range(1600): print('x' * 65535)"):
        events = [json.loads(line) for line in piece.splitlines()]
        text += sum(len(event["text"]) for event in events if event["type"] == "stdout")
        assert len(piece) < 8 << 20
        peak = max(peak, resident_mib(pid))
    assert text == 100 << 20
    assert peak - before < 32


async def test_a_slow_reader_holds_the_printing_code_back(interpreter: Interpreter, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"for n in range(400):\n    print('x' * 65535)\n    open({str(mark)!r}, 'w').write(str(n))"
    stream = await interpreter.stream(code)
    async for piece in stream:
        if b"xx" in piece:
            break
    # The reader stops here. The code comes to a stand within what queue, sockets and buffers take.
    reached, before = 0, -1
    while reached < 1 or reached != before:
        await asyncio.sleep(0.3)
        before, reached = reached, int(mark.read_text() or 0) if mark.exists() else 0
    assert reached < 200
    rest = b"".join([piece async for piece in stream])
    assert rest.endswith(b'{"type":"end_of_execution"}\n')


def resident_mib(pid: str | None) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / (1 << 20)
