"""process.Process end to end: what a client of the wire sees of a process."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.agent.running_agent import TOKEN, Agent, Stream, StreamError

from cloche_wire import connect

MISSING = "no such file or directory"
NULL_BYTE = "null byte in the command, its folder or its environment"


def _input(pid: int, **piece: bytes) -> dict[str, object]:
    encoded = {name: base64.b64encode(data).decode() for name, data in piece.items()}
    return {"process": {"pid": pid}, "input": encoded}


def _pid(stream: Stream) -> int:
    """Pid out of the first event; the stream stands after it."""
    return next(iter(stream))["event"]["start"]["pid"]


def test_output_arrives_whole_and_before_the_end(agent: Agent) -> None:
    result = agent.run("sh", "-c", "echo out; echo err >&2; head -c 1000000 /dev/zero")
    assert result.stdout == b"out\n" + bytes(1_000_000)
    assert result.stderr == b"err\n"
    assert result.end == {"exited": True, "status": "exit status 0"}


def test_exit_code_is_told_in_every_field(agent: Agent) -> None:
    end = agent.run("sh", "-c", "exit 3").end
    assert end == {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}


def test_death_by_signal_is_told_as_go_tells_it(agent: Agent) -> None:
    end = agent.run("sh", "-c", "kill -9 $$").end
    assert end == {"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}


def test_environment_is_user_then_sandbox_then_request(agent: Agent) -> None:
    script = "echo $FROM_SANDBOX $OVERRIDDEN $E2B_SANDBOX_ID $E2B_SANDBOX ${PATH:+path} $USER$LOGNAME"
    result = agent.run(
        "sh", "-c", script, process={"envs": {"OVERRIDDEN": "request", "USER": "x", "LOGNAME": "y"}}
    )
    assert result.stdout == b"1 request isandbox true path xy\n"


def test_default_folder_is_the_working_folder(agent: Agent) -> None:
    assert agent.run("pwd").stdout.decode().strip() == str(agent.socket_path.parent)


def test_process_inherits_no_descriptor_but_the_three(agent: Agent) -> None:
    """The fourth is the shell's own, for reading the folder."""
    assert agent.run("sh", "-c", "cd /proc/self/fd; echo *").stdout == b"0 1 2 3\n"


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"process": {"cwd": "/nope"}}, "invalid_argument", "cwd '/nope' does not exist"),
        ({"process": {"cmd": "nope"}}, "invalid_argument", f"cannot execute 'nope': {MISSING}"),
        ({"process": {"cmd": ""}}, "invalid_argument", "cmd is missing"),
        ({"process": {"cmd": "a\0b"}}, "invalid_argument", NULL_BYTE),
        ({"process": {"envs": {"A=B": "c"}}}, "invalid_argument", "cannot execute 'true': invalid argument"),
        ({"headers": {"Authorization": "Basic bm9wZTo="}}, "unauthenticated", "invalid username: 'nope'"),
    ],
)  # fmt: skip
def test_what_cannot_start_says_why(agent: Agent, fields: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(StreamError) as caught:
        agent.run("true", **fields)
    assert (caught.value.code, caught.value.message) == (code, message)


def test_stdin_is_written_and_closed(agent: Agent) -> None:
    stream = agent.start("cat", stdin=True)
    pid = _pid(stream)
    assert agent.call("process.Process/SendInput", _input(pid, stdin=b"hello ")).status == 200
    assert agent.call("process.Process/SendInput", _input(pid, stdin=b"you")).status == 200
    assert agent.call("process.Process/CloseStdin", {"process": {"pid": pid}}).status == 200
    with contextlib.closing(agent.stream("process.Process/Connect", {"process": {"pid": pid}})) as follower:
        assert list(follower)[-1]["event"]["end"]["status"] == "exit status 0"
    data = b"".join(
        base64.b64decode(message["event"]["data"]["stdout"])
        for message in stream
        if "data" in message["event"]
    )
    stream.close()
    assert data == b"hello you"


def test_input_larger_than_a_pipe_waits_for_the_process(agent: Agent) -> None:
    stream = agent.start("sh", "-c", "wc -c", stdin=True)
    pid = _pid(stream)
    big = {"data": _input(pid, stdin=bytes(1_000_000))}
    upload = agent.stream(
        "process.Process/StreamInput", {"start": {"process": {"pid": pid}}}, big, {"keepalive": {}}, big
    )
    assert list(upload) == [{}]
    upload.close()
    agent.call("process.Process/CloseStdin", {"process": {"pid": pid}})
    events = [message["event"] for message in stream]
    stream.close()
    assert base64.b64decode(events[0]["data"]["stdout"]).strip() == b"2000000"


def test_without_stdin_the_process_reads_nothing_and_input_is_an_error(agent: Agent) -> None:
    assert agent.run("cat").stdout == b""
    stream = agent.start("sleep", "20", stdin=False)
    pid = _pid(stream)
    answer = agent.call("process.Process/SendInput", _input(pid, stdin=b"x"))
    assert (answer.status, answer.json["code"]) == (500, "internal")
    agent.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    stream.close()


def test_kill_takes_what_the_shell_waits_for(agent: Agent) -> None:
    stream = agent.start("sh", "-c", "sleep 30; echo never", tag="to-kill")
    pid = _pid(stream)
    signal = {"process": {"tag": "to-kill"}, "signal": "SIGNAL_SIGKILL"}
    assert agent.call("process.Process/SendSignal", signal).status == 200
    assert list(stream)[-1]["event"]["end"]["status"] == "signal: killed"
    stream.close()
    answer = agent.call("process.Process/SendSignal", signal)
    assert (answer.status, answer.json["message"]) == (404, "process with tag to-kill not found")
    answer = agent.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": 9})
    assert (answer.status, answer.json["message"]) == (404, f"process with pid {pid} not found")


def test_list_shows_what_runs(agent: Agent) -> None:
    stream = agent.start("sleep", "20", tag="listed", process={"envs": {"A": "b"}})
    pid = _pid(stream)
    found = [one for one in agent.call("process.Process/List", {}).json["processes"] if one["pid"] == pid]
    assert found == [
        {"config": {"cmd": "sleep", "args": ["20"], "envs": {"A": "b"}}, "pid": pid, "tag": "listed"}
    ]
    agent.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    _drain(stream)
    assert pid not in [one["pid"] for one in agent.call("process.Process/List", {}).json.get("processes", [])]


def _drain(stream: Stream) -> None:
    for _ in stream:
        pass
    stream.close()


def test_deadline_kills_and_says_so(agent: Agent) -> None:
    stream = agent.start("sh", "-c", "sleep 30; true", headers={"Connect-Timeout-Ms": "1000"})
    pid = _pid(stream)
    with pytest.raises(StreamError) as caught:
        list(stream)
    stream.close()
    assert caught.value.code == "deadline_exceeded"
    with contextlib.closing(agent.stream("process.Process/Connect", {"process": {"pid": pid}})) as follower:
        assert list(follower)[-1]["event"]["end"]["status"] == "signal: killed"


def test_caller_that_leaves_does_not_take_the_process_along(agent: Agent, tmp_path: Path) -> None:
    """Its output, more than any buffer holds, is dropped, so it comes to its end."""
    done = tmp_path / "done"
    stream = agent.start("sh", "-c", f"read x; head -c 20000000 /dev/zero; echo y >{done}", stdin=True)
    pid = _pid(stream)
    stream.close()
    agent.call("process.Process/SendInput", _input(pid, stdin=b"go\n"))
    with contextlib.closing(agent.stream("process.Process/Connect", {"process": {"pid": pid}})) as follower:
        assert list(follower)[-1]["event"]["end"]["exited"]
    assert done.exists()


def test_slow_reader_holds_the_process_and_not_the_memory(agent: Agent) -> None:
    stream = agent.start("sh", "-c", "head -c 60000000 /dev/zero; echo end >&2")
    before = _resident_bytes(agent.pid)
    _pid(stream)
    with pytest.raises(TimeoutError):  # nobody reads: the writer must still be there
        _wait_gone("head -c 60000000", 0.5)
    assert _resident_bytes(agent.pid) - before < 20 << 20
    _drain(stream)


def _wait_gone(command: str, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if not any(command in _command(entry) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
            return
    raise TimeoutError(command)


def _command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_terminal_has_a_size_takes_input_and_is_resized(agent: Agent) -> None:
    stream = agent.start(
        "sh", "-c", "stty size; read x; stty size; tty >/dev/null", pty={"size": {"cols": 91, "rows": 17}}
    )
    pid = _pid(stream)
    resized = {"process": {"pid": pid}, "pty": {"size": {"cols": 100, "rows": 30}}}
    assert agent.call("process.Process/Update", resized).status == 200
    assert agent.call("process.Process/SendInput", _input(pid, stdin=b"x")).status == 500
    assert agent.call("process.Process/CloseStdin", {"process": {"pid": pid}}).status == 400
    assert agent.call("process.Process/SendInput", _input(pid, pty=b"go\n")).status == 200
    events = [message["event"] for message in stream]
    stream.close()
    shown = b"".join(base64.b64decode(event["data"]["pty"]) for event in events if "data" in event)
    assert b"30 100" in shown
    assert events[-1]["end"]["status"] == "exit status 0"


def test_interrupt_typed_on_a_terminal_reaches_the_program(agent: Agent) -> None:
    stream = agent.start("sh", "-c", "trap 'exit 5' INT; echo ready; while :; do sleep 0.05; done", pty={})
    pid = _pid(stream)
    for message in stream:
        if b"ready" in base64.b64decode(message["event"]["data"]["pty"]):
            break
    agent.call("process.Process/SendInput", _input(pid, pty=b"\x03"))
    assert list(stream)[-1]["event"]["end"]["exitCode"] == 5
    stream.close()


def test_keepalive_breaks_the_silence(agent: Agent) -> None:
    stream = agent.start("sleep", "30", headers={"Keepalive-Ping-Interval": "1"})
    pid = _pid(stream)
    assert next(iter(stream)) == {"event": {"keepalive": {}}}
    agent.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"})
    assert list(stream)[-1]["event"]["end"]["status"] == "signal: terminated"
    stream.close()


def test_what_a_process_leaves_running_does_not_hold_its_end(agent: Agent) -> None:
    result = agent.run("sh", "-c", "sleep 8 & echo started")
    assert result.stdout == b"started\n"
    assert result.end["exited"]


def test_unknown_method_and_bad_message_are_told(agent: Agent) -> None:
    assert agent.call("process.Process/Nope", {}).json["code"] == "unimplemented"
    answer = agent.request("POST", "/process.Process/List", b"{", Content_Type="application/json")
    assert (answer.status, answer.json["code"]) == (400, "invalid_argument")
    assert agent.request("POST", "/process.Process/List", b"{}", Content_Type="text/plain").status == 415
    assert agent.request("GET", "/process.Process/List").status == 405


def test_malformed_authorization_is_refused(agent: Agent) -> None:
    answer = agent.request("POST", "/process.Process/Start", b"", Authorization="Basic !")
    assert (answer.status, answer.json["message"]) == (401, "malformed authorization header")


def test_unary_call_may_be_packed(agent: Agent) -> None:
    body = gzip.compress(b"{}")
    answer = agent.request(
        "POST", "/process.Process/List", body, Content_Type="application/json", Content_Encoding="gzip"
    )
    assert answer.status == 200


class _OpenInput:
    """A StreamInput call whose side stays open until `end`."""

    def __init__(self, agent: Agent, pid: int, **headers: str) -> None:
        self._connection = agent.connection()
        self._connection.putrequest("POST", "/process.Process/StreamInput")
        fields = {
            "Content-Type": connect.STREAM_JSON,
            "X-Access-Token": TOKEN,
            "Transfer-Encoding": "chunked",
        }
        for name, value in {**fields, **headers}.items():
            self._connection.putheader(name.replace("_", "-"), value)
        self._connection.endheaders()
        self.send({"start": {"process": {"pid": pid}}})

    def send(self, message: dict[str, Any]) -> None:
        envelope = connect.encode_envelope(0, json.dumps(message).encode())
        self._connection.send(b"%x\r\n%b\r\n" % (len(envelope), envelope))

    def answer(self) -> Stream:
        return Stream(self._connection, self._connection.getresponse())

    def end(self) -> Stream:
        self._connection.send(b"0\r\n\r\n")
        return self.answer()


def test_streamed_input_arrives_piece_by_piece(agent: Agent) -> None:
    stream = agent.start("cat", stdin=True)
    pid = _pid(stream)
    output = iter(stream)
    feeding = _OpenInput(agent, pid)
    for piece in (b"one", b"two"):
        feeding.send({"keepalive": {}})
        feeding.send({"data": {"input": _input(pid, stdin=piece)["input"]}})
        assert base64.b64decode(next(output)["event"]["data"]["stdout"]) == piece
    with contextlib.closing(feeding.end()) as answer:
        assert list(answer) == [{}]
    agent.call("process.Process/CloseStdin", {"process": {"pid": pid}})
    _drain(stream)


def test_streamed_input_ends_at_its_deadline(agent: Agent) -> None:
    stream = agent.start("cat", stdin=True)
    pid = _pid(stream)
    feeding = _OpenInput(agent, pid, Connect_Timeout_Ms="300")
    with (
        contextlib.closing(feeding.answer()) as answer,
        pytest.raises(StreamError, match="deadline_exceeded"),
    ):
        list(answer)
    agent.call("process.Process/CloseStdin", {"process": {"pid": pid}})
    _drain(stream)


def test_streamed_input_for_a_process_that_has_ended_is_an_error(agent: Agent) -> None:
    stream = agent.start("sh", "-c", "read line", stdin=True)
    pid = _pid(stream)
    feeding = _OpenInput(agent, pid)
    feeding.send({"data": {"input": _input(pid, stdin=b"end\n")["input"]}})
    _drain(stream)
    feeding.send({"data": {"input": _input(pid, stdin=b"late")["input"]}})
    with contextlib.closing(feeding.answer()) as answer, pytest.raises(StreamError, match="internal: stdin"):
        list(answer)


def test_following_ends_at_its_deadline_and_the_process_goes_on(agent: Agent) -> None:
    stream = agent.start("sleep", "20")
    pid = _pid(stream)
    follower = agent.stream(
        "process.Process/Connect", {"process": {"pid": pid}}, **{"Connect-Timeout-Ms": "200"}
    )
    with contextlib.closing(follower), pytest.raises(StreamError, match="deadline_exceeded"):
        list(follower)
    assert (
        agent.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"}).status
        == 200
    )
    _drain(stream)


def test_unary_call_ends_at_its_deadline(agent: Agent) -> None:
    """The pipe of a process that does not read fills up."""
    stream = agent.start("sleep", "20", stdin=True)
    pid = _pid(stream)
    much = _input(pid, stdin=bytes(1 << 20))
    answer = agent.call("process.Process/SendInput", much, Connect_Timeout_Ms="200")
    assert (answer.status, answer.json["code"]) == (504, "deadline_exceeded")
    agent.call("process.Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    _drain(stream)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Connect-Timeout-Ms": "soon"}, "invalid_argument"),
        ({"Connect-Timeout-Ms": "-1"}, "invalid_argument"),
        ({"Authorization": "Basic !"}, "unauthenticated"),
    ],
)
def test_bad_header_of_a_streaming_call_is_told_in_its_stream(
    agent: Agent, headers: dict[str, str], code: str
) -> None:
    """Clients read the codes of streams from the last envelope only."""
    with (
        contextlib.closing(agent.start("true", headers=headers)) as stream,
        pytest.raises(StreamError, match=code),
    ):
        list(stream)
