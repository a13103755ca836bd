"""The official client's commands and terminals."""

import time

import pytest
from e2b.sandbox.commands.command_handle import PtySize

from e2b_code_interpreter import CommandExitException, InvalidArgumentException, Sandbox, TimeoutException


def test_a_command_has_its_output_and_its_exit_code(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("echo out; echo err >&2")
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 0)


def test_a_failed_command_is_an_exception_with_all_of_it(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo partial; exit 7")
    assert (failed.value.exit_code, failed.value.stdout) == (7, "partial\n")


def test_it_runs_as_user_at_home_and_as_root_when_asked(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("whoami; pwd; id -u").stdout == "user\n/home/user\n1000\n"
    assert sandbox.commands.run("whoami; id -u", user="root").stdout == "root\n0\n"
    assert sandbox.commands.run("sudo -n id -u").stdout == "0\n"


def test_cwd_and_envs_are_those_of_the_call(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("pwd; echo $WORD $E2B_SANDBOX", cwd="/tmp", envs={"WORD": "two words"})
    assert done.stdout == "/tmp\ntwo words true\n"
    with pytest.raises(InvalidArgumentException, match="cwd"):
        sandbox.commands.run("true", cwd="/no/such/folder")


def test_output_is_streamed(sandbox: Sandbox) -> None:
    seen: list[str] = []

    def note(text: str) -> None:
        seen.append(text)
        sandbox.files.write("/tmp/has-come", text)

    command = "rm -f /tmp/has-come; echo one; until [ -e /tmp/has-come ]; do sleep 0.05; done; echo two"
    sandbox.commands.run(command, on_stdout=note)  # waits for ever where the first is not told before the end
    assert seen == ["one\n", "two\n"]


def test_a_background_command_is_listed_killed_and_gone(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 300", background=True)
    assert handle.pid in [process.pid for process in sandbox.commands.list()]
    assert handle.kill() is True
    with pytest.raises(CommandExitException):
        handle.wait()
    assert handle.pid not in [process.pid for process in sandbox.commands.list()]
    assert sandbox.commands.kill(handle.pid) is False


def test_a_background_command_lives_on_without_its_client(sandbox: Sandbox) -> None:
    command = "until [ -e /tmp/may-end ]; do sleep 0.05; done; echo done > /tmp/lived"
    handle = sandbox.commands.run(command, background=True)
    handle.disconnect()
    again = sandbox.commands.connect(handle.pid)
    sandbox.files.write("/tmp/may-end", "")
    assert again.wait().exit_code == 0
    assert sandbox.files.read("/tmp/lived") == "done\n"


def test_stdin_is_sent_and_closed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "line one\n")
    sandbox.commands.send_stdin(handle.pid, "line two\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "line one\nline two\n"


def test_stdin_can_be_streamed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("wc -c", background=True, stdin=True)
    sandbox.commands.stream_input(handle.pid, (b"x" * 1000 for _ in range(50)))
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout.strip() == "50000"


def test_a_command_that_takes_too_long_is_ended(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 61.5", timeout=1)
    over_at = time.monotonic() + 10  # the client gives up by itself, and the command ends when that is seen
    while "sleep 61.5" in sandbox.commands.run("ps -eo args").stdout:
        assert time.monotonic() < over_at, "it runs on"


def test_bytes_that_are_not_utf8_do_not_break_the_stream(sandbox: Sandbox) -> None:
    done = sandbox.commands.run(r"printf 'a\xffb\n'; echo after")
    assert done.stdout.endswith("b\nafter\n")


def test_a_long_output_arrives_whole(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("seq 1 200000")
    assert len(done.stdout.splitlines()) == 200000
    assert done.stdout.endswith("\n200000\n")


def test_a_terminal_takes_input_and_a_new_size(sandbox: Sandbox) -> None:
    output: list[bytes] = []
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=30)
    sandbox.pty.send_stdin(terminal.pid, b"stty size; echo $TERM\n")
    sandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=100))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    terminal.wait(on_pty=output.append)
    text = b"".join(output).decode()
    assert "40 100" in text
    assert "xterm-256color" in text


def test_a_terminal_can_be_killed(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=30)
    assert sandbox.pty.kill(terminal.pid) is True
    with pytest.raises(CommandExitException):
        terminal.wait()


def test_a_killed_sandbox_says_so_to_a_running_command() -> None:
    created = Sandbox.create(timeout=60)
    handle = created.commands.run("sleep 60", background=True)
    created.kill()
    with pytest.raises(TimeoutException):
        handle.wait()
