"""Coming back to a command or a terminal whose connection was lost."""

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox

from cloche import PtySize, Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.timeout(180)]

COUNTER = "echo one; echo two; touch /tmp/printed; read line; echo three $line"


def _wait_for_file(sandbox: Sandbox, path: str) -> None:
    sandbox.commands.run(f"until [ -e {path} ]; do sleep 0.05; done", timeout=30)


def test_a_command_is_taken_up_where_its_connection_broke(sandboxes: MakeSandbox) -> None:
    """Nothing is lost and nothing comes twice, though it went on printing meanwhile."""
    sandbox = sandboxes()
    first = sandbox.commands.run(COUNTER, background=True, stdin=True, timeout=0)
    seen = next(iter(first)).stdout or ""
    first.disconnect()
    _wait_for_file(sandbox, "/tmp/printed")
    second = sandbox.commands.connect(first.pid, replay=first.offset)
    assert second.offset == first.offset == len(seen)
    second.send_stdin("ok\n")
    assert seen + second.wait().stdout == "one\ntwo\nthree ok\n"


def test_without_being_asked_for_nothing_comes_again(sandboxes: MakeSandbox) -> None:
    """As with E2B: connecting begins now."""
    sandbox = sandboxes()
    first = sandbox.commands.run(COUNTER, background=True, stdin=True, timeout=0)
    _wait_for_file(sandbox, "/tmp/printed")
    second = sandbox.commands.connect(first.pid)
    second.send_stdin("ok\n")
    assert second.wait().stdout == "three ok\n"
    third = sandbox.commands.connect(first.pid, replay=True)  # it has ended, a moment ago
    assert third.wait().stdout == "one\ntwo\nthree ok\n"


def test_a_terminal_shows_again_what_was_on_it(sandboxes: MakeSandbox) -> None:
    """Raw bytes, as the terminal got them."""
    sandbox = sandboxes()
    terminal = sandbox.pty.create(PtySize(cols=80, rows=24), timeout=0)
    terminal.disconnect()
    sandbox.pty.send_stdin(terminal.pid, b"echo mark$((6*7)); touch /tmp/echoed\n")
    _wait_for_file(sandbox, "/tmp/echoed")
    again = sandbox.pty.connect(terminal.pid, replay=True)
    shown = b""
    for output in again:
        shown += output.pty or b""
        if b"mark42" in shown:
            break
    assert sandbox.pty.kill(terminal.pid)
