"""The frames of output, which are written without the codec."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys

import pytest

from cloche_agent.process import running
from cloche_agent.process.output import PIPE_BYTES, Output
from cloche_wire import connect, proto_json
from cloche_wire.messages.process import DataEvent, ProcessEvent, StartResponse


@pytest.mark.parametrize("piece", [b"x", b"\0\xff", b"abc" * 1000, bytes(range(256)) * 128])
def test_output_frames_are_what_the_codec_writes(piece: bytes) -> None:
    makers = {"stdout": running.stdout_frame, "stderr": running.stderr_frame, "pty": running.terminal_frame}
    for kind, make in makers.items():
        message = StartResponse(event=ProcessEvent(data=DataEvent(**{kind: piece})))
        assert make(piece) == connect.encode_envelope(0, proto_json.encode(message))


def fill(pipe: int) -> int:
    """Write until nothing more fits; how much that was."""
    size = 0
    while True:
        try:
            size += os.write(pipe, b"x" * 4096)
        except BlockingIOError:
            return size


def read_all(output: Output, until: int) -> int:
    """Let the output be read up to an offset; how many pieces that took."""
    before = output.pieces_read
    while output.history.end < until:
        for read in tuple(output._sources.values()):
            read()
    return output.pieces_read - before


@pytest.mark.anyio
async def test_a_pipe_that_is_found_full_is_read_in_fewer_and_larger_pieces() -> None:
    ours, theirs = os.pipe2(os.O_NONBLOCK)
    output = Output()
    output.add(ours, PIPE_BYTES, running.stdout_frame)
    assert fcntl.fcntl(ours, fcntl.F_GETPIPE_SZ) == PIPE_BYTES, "a quiet program's pipe takes no more memory"
    printed = fill(theirs)
    assert read_all(output, printed) == 1
    more = fill(theirs)
    assert more == 4 * printed
    assert read_all(output, printed + more) == 3
    os.close(theirs)
    await output.wait_closed()


FRESH_PAGES = """
import resource
from cloche_agent import __main__ as agent
from cloche_agent.process import running
agent.keep_freed_memory()
piece = bytes(128 * 1024)
running.stdout_frame(piece)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(128):
    running.stdout_frame(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_frames_are_built_in_memory_that_was_used_before() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH_PAGES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200, "16 MiB of output would take 10,000 fresh pages"
