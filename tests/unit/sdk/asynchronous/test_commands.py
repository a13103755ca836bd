"""Commands and terminals."""

from __future__ import annotations

import base64

import httpx
import pytest
from tests.fakes.sandbox_server import GONE, SandboxServer, body_of, process, refused, stream, unary

from cloche import CommandExit, CommandResult, DeadlineExceeded, PtySize, SandboxNotRunning
from cloche._async.sandbox import AsyncSandbox
from cloche.errors import NotFound, Unavailable
from cloche_wire.messages.process import (
    DataEvent,
    KeepAlive,
    ListResponse,
    ProcessConfig,
    ProcessEvent,
    ProcessInfo,
    SendInputResponse,
    SendSignalResponse,
    StartResponse,
    UpdateResponse,
)

pytestmark = pytest.mark.anyio

START = "POST /process.Process/Start"


async def test_run_waits_and_gives_the_output(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(START, stream(*process(DataEvent(stdout=b"out\n"), DataEvent(stderr=b"err\n"))))
    seen: list[str] = []
    result = await sandbox.commands.run(
        "echo", envs={"A": "b"}, user="root", cwd="/tmp", on_stdout=seen.append, on_stderr=seen.append
    )
    assert result == CommandResult("out\n", "err\n", 0)
    assert seen == ["out\n", "err\n"]
    (request,) = server.requests
    assert body_of(request) == {
        "process": {"cmd": "/bin/bash", "args": ["-l", "-c", "echo"], "envs": {"A": "b"}, "cwd": "/tmp"},
        "stdin": False,
    }
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"root:").decode()
    assert request.headers["connect-timeout-ms"] == "60000"
    assert request.headers["keepalive-ping-interval"] == "50"


async def test_a_bad_exit_is_an_error_with_the_output(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(START, stream(*process(DataEvent(stderr=b"no such file"), exit_code=2)))
    with pytest.raises(CommandExit, match="no such file") as caught:
        await sandbox.commands.run("ls nowhere")
    assert (caught.value.exit_code, caught.value.stderr, caught.value.stdout) == (2, "no such file", "")


async def test_characters_cut_between_pieces_come_out_whole(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    euro = "€".encode()
    server.on(START, stream(*process(DataEvent(stdout=euro[:1]), DataEvent(stdout=euro[1:] + b"\xff"))))
    assert (await sandbox.commands.run("x")).stdout == "€\ufffd"


async def test_without_limit_no_timeout_is_sent(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(START, stream(*process()))
    await sandbox.commands.run("x", timeout=0)
    assert "connect-timeout-ms" not in server.requests[0].headers


async def test_a_command_whose_time_is_over_is_an_error(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(START, stream(*process()[:1], error=DeadlineExceeded("time is over")))
    with pytest.raises(DeadlineExceeded, match="time is over"):
        await sandbox.commands.run("sleep 100", timeout=1)


async def test_a_background_command_can_be_watched_fed_and_ended(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    server.on(START, stream(*process(DataEvent(stdout=b"hi"))))
    running = ProcessInfo(ProcessConfig("/bin/bash", ["-l"]), 7)
    server.on("POST /process.Process/List", unary(ListResponse([running])), unary(ListResponse()))
    server.on("POST /process.Process/SendInput", unary(SendInputResponse()))
    server.on("POST /process.Process/SendSignal", unary(SendSignalResponse()), refused(NotFound("gone")))
    handle = await sandbox.commands.run("cat", background=True, stdin=True)
    assert handle.pid == 7
    assert await handle.is_alive()
    assert not await handle.is_alive()
    await handle.send_stdin("ü")
    assert body_of(server.asked("POST /process.Process/SendInput")[0]) == {
        "process": {"pid": 7},
        "input": {"stdin": base64.b64encode("ü".encode()).decode()},
    }
    assert await handle.kill()
    assert not await handle.kill()
    assert (await handle.wait()).stdout == "hi"
    assert not await handle.is_alive()
    assert (handle.exit_code, handle.stdout) == (0, "hi")


async def test_output_can_be_iterated(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(START, stream(*process(DataEvent(stdout=b"a"), DataEvent(stderr=b"b"))))
    handle = await sandbox.commands.run("x", background=True)
    assert [tuple(output) async for output in handle] == [("a", None, None), (None, "b", None)]


async def test_keepalives_are_passed_over(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    alive = StartResponse(ProcessEvent(keepalive=KeepAlive()))
    start, end = process()
    server.on(START, stream(alive, start, alive, end))
    assert (await sandbox.commands.run("x")).exit_code == 0


async def test_a_stream_cut_by_the_end_of_the_sandbox_says_so(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    server.on(START, stream(*process()[:1], cut=True))
    server.on("GET /health", httpx.Response(502, json=GONE))
    with pytest.raises(SandboxNotRunning, match="end of life"):
        await sandbox.commands.run("sleep 100")


async def test_a_stream_cut_on_the_way_is_unavailable(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(START, stream(*process()[:1], cut=True))
    server.on("GET /health", httpx.Response(204))
    with pytest.raises(Unavailable, match="cut off"):
        await sandbox.commands.run("sleep 100")


async def test_a_command_in_an_ended_sandbox_says_so(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(START, httpx.Response(502, json=GONE))
    with pytest.raises(SandboxNotRunning, match="set_timeout"):
        await sandbox.commands.run("x")


async def test_processes_are_listed(server: SandboxServer, sandbox: AsyncSandbox) -> None:
    server.on(
        "POST /process.Process/List", unary(ListResponse([ProcessInfo(ProcessConfig("sh", ["-c"]), 3, "t")]))
    )
    (found,) = await sandbox.commands.list()
    assert (found.pid, found.tag, found.cmd, found.args, found.cwd) == (3, "t", "sh", ["-c"], None)


async def test_a_terminal_is_opened_typed_into_and_resized(
    server: SandboxServer, sandbox: AsyncSandbox
) -> None:
    server.on(START, stream(*process(DataEvent(pty=b"$ "))))
    server.on("POST /process.Process/SendInput", unary(SendInputResponse()))
    server.on("POST /process.Process/Update", unary(UpdateResponse()))
    handle = await sandbox.pty.create(PtySize(rows=24, cols=80), envs={"TERM": "dumb"})
    await sandbox.pty.send_stdin(handle.pid, b"exit\n")
    await sandbox.pty.resize(handle.pid, PtySize(rows=1, cols=2))
    seen: list[bytes] = []
    await handle.wait(on_pty=seen.append)
    assert seen == [b"$ "]
    assert body_of(server.requests[0]) == {
        "process": {
            "cmd": "/bin/bash",
            "args": ["-i", "-l"],
            "envs": {"TERM": "dumb", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
        },
        "pty": {"size": {"cols": 80, "rows": 24}},
    }
    assert body_of(server.requests[2]) == {"process": {"pid": 7}, "pty": {"size": {"cols": 2, "rows": 1}}}


@pytest.mark.parametrize(("replay", "sent"), [(False, None), (True, "0"), (0, "0"), (12, "12")])
async def test_connect_takes_up_the_output_where_it_is_told_to(
    server: SandboxServer, sandbox: AsyncSandbox, replay: bool | int, sent: str | None
) -> None:
    answer = stream(*process(DataEvent(stdout=b"ab"), DataEvent(stderr=b"c")))
    answer.headers["cloche-replay-from"] = "20"
    server.on("POST /process.Process/Connect", answer)
    handle = await sandbox.commands.connect(7, replay=replay)
    assert server.requests[0].headers.get("cloche-replay-from") == sent
    assert handle.offset == 20
    await handle.wait()
    assert handle.offset == 23
