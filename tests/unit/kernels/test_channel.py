"""What a kernel writes to its descriptors 1 and 2, with a kernel that does nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from tests.unit.kernels.conftest import bound_sandbox, serving

from cloche_agent.kernels.channel import FrameChannel, OutputPipe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

# Runs its cells with /bin/sh, line by line; `say X` sends that text as a result.
SHELL_KERNEL = r"""
import json, os, socket, subprocess, sys
sock = socket.socket(fileno=int(sys.argv[1]))
sock.set_inheritable(False)
stream = sock.makefile("rb")
def receive():
    head = stream.read(4)
    return json.loads(stream.read(int.from_bytes(head, "big"))) if head else sys.exit()
def send(**message):
    body = json.dumps(message).encode()
    sock.sendall(len(body).to_bytes(4, "big") + body)
os.chdir(receive()["cwd"])
send(type="ready")
while True:
    run = receive()
    send(type="started", id=run["id"], count=1)
    for line in run["code"].splitlines():
        if line.startswith("say "):
            send(type="result", main=False, bundle={"text/plain": line[4:]})
        else:
            subprocess.run(["/bin/sh", "-c", line])
    send(type="done", id=run["id"])
"""


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("cloche_agent.kernels.service.DEFAULT_CWD", str(tmp_path))
    program = tmp_path / "python_kernel" / "__main__.py"
    program.parent.mkdir()
    program.write_text(SHELL_KERNEL)
    return tmp_path


async def test_what_a_program_has_written_comes_before_the_frame_that_follows(kernels: Path) -> None:
    async with serving(bound_sandbox(), kernels) as interpreter:
        events = await interpreter.events("echo one; echo error >&2\nsay two\nprintf three")
    texts = [event["text"] for event in events if "text" in event]
    assert set(texts[:2]) == {"one\n", "error\n"}
    assert sorted(texts[2:]) == ["three", "two"]
    assert events[-1] == {"type": "end_of_execution"}


async def test_all_that_a_program_writes_before_the_end_arrives(kernels: Path) -> None:
    async with serving(bound_sandbox(), kernels) as interpreter:
        execution = await interpreter.run("seq 1 500000\nprintf '\\303\\274 \\377 \\303'")
    text = "".join(execution.logs.stdout)
    assert text.startswith("1\n2\n")
    assert text.endswith("500000\nü � ")  # the last byte waits for its second half


async def test_what_a_program_writes_between_runs_is_dropped(kernels: Path, tmp_path: Path) -> None:
    gate, over = tmp_path / "gate", tmp_path / "over"
    late = f"(until [ -e {gate} ]; do sleep 0.01; done; seq 1 400000; touch {over}) &"
    async with serving(bound_sandbox(), kernels) as interpreter:
        await interpreter.run(late)
        gate.touch()
        other = await interpreter.new_context()
        await interpreter.run(f"until [ -e {over} ]; do sleep 0.01; done", context_id=other)
        execution = await interpreter.run("echo heard")
    assert execution.logs.stdout == ["heard\n"]


async def test_what_is_written_while_the_end_is_read_comes_before_the_end() -> None:
    class Late(socket.socket):
        """Its other side writes to the pipe and says that it is done after the pipes were emptied."""

        def recv(self, size: int, flags: int = 0, /) -> bytes:
            if pending:
                os.write(writer, pending.pop())
                for message in ({"type": "started"}, {"type": "done"}):
                    body = json.dumps(message).encode()
                    theirs.sendall(len(body).to_bytes(4, "big") + body)
            return super().recv(size, flags)

    pending = [b"heard"]
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    channel = FrameChannel(Late(fileno=ours.detach()), [OutputPipe("stdout", reader)])
    channel.open_run()
    theirs.sendall(b"\0\0\0\2{}")
    async with asyncio.timeout(10):
        messages = await channel.receive()
    channel.end()
    theirs.close()
    os.close(writer)
    assert messages == [{}, {"type": "started"}, {"type": "stdout", "text": "heard"}, {"type": "done"}]
