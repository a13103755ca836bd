"""Bash as a language: one bash per context, driven over pipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.kernels.conftest import Interpreter

pytestmark = pytest.mark.anyio


async def output(interpreter: Interpreter, code: str, **fields: object) -> str:
    execution = await interpreter.run(code, language="bash", **fields)
    assert execution.error is None, execution.error
    assert "".join(execution.logs.stderr) == ""
    return "".join(execution.logs.stdout)


async def test_variables_functions_and_folder_last(interpreter: Interpreter, tmp_path: Path) -> None:
    assert await output(interpreter, "pwd") == f"{tmp_path}\n"
    assert await output(interpreter, 'x=5; greet() { echo "it\'s $1"; }; cd /') == ""
    assert await output(interpreter, "greet $x; pwd") == "it's 5\n/\n"


async def test_errors_and_output_are_apart_and_counted(interpreter: Interpreter) -> None:
    execution = await interpreter.run("echo out; echo err >&2", language="bash")
    assert (execution.logs.stdout, execution.logs.stderr) == (["out\n"], ["err\n"])
    assert execution.execution_count == 1
    assert (await interpreter.run("echo again", language="bash")).execution_count == 2


@pytest.mark.parametrize(
    ("code", "status"), [("echo before; false", "1"), ("(exit 7)", "7"), ("if then", "2")]
)
async def test_an_exit_status_is_an_error_and_the_context_goes_on(
    interpreter: Interpreter, code: str, status: str
) -> None:
    await output(interpreter, "x=kept")
    execution = await interpreter.run(code, language="bash")
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("ExitStatus", status)
    assert await output(interpreter, "echo $x") == "kept\n"


async def test_exit_ends_bash_and_not_the_context(interpreter: Interpreter) -> None:
    execution = await interpreter.run("x=lost; exit 3", language="bash")
    assert execution.error is not None
    assert execution.error.value == "3"
    assert "bash has ended" in "".join(execution.logs.stderr)
    assert await output(interpreter, "echo ${x:-new}") == "new\n"
    execution = await interpreter.run("echo done; exit", language="bash")
    assert (execution.error, execution.logs.stdout) == (None, ["done\n"])


async def test_variables_of_one_run_are_put_back(interpreter: Interpreter) -> None:
    await output(interpreter, "export B='own '; C=unexported")
    assert (
        await output(interpreter, 'echo "$A|$B|$C"', env_vars={"A": "1 '2", "B": "x", "C": "y"})
        == "1 '2|x|y\n"
    )
    assert (
        await output(interpreter, 'echo "${A-none}|$B|$C"; env | grep ^C= || true')
        == "none|own |unexported\n"
    )


async def test_a_variable_that_no_shell_can_have_is_left_out(interpreter: Interpreter) -> None:
    assert await output(interpreter, "echo $A", env_vars={"A": "1", "not.a-name": "2"}) == "1\n"


async def test_an_interrupt_ends_a_loop_and_what_it_waits_for(interpreter: Interpreter) -> None:
    await output(interpreter, "x=kept")
    await interpreter.abandon("echo going; while true; do :; done", until="going", language="bash")
    assert await output(interpreter, "echo $x") == "kept\n"
    await interpreter.abandon("echo going; sleep 1000", until="going", language="bash")
    assert await output(interpreter, "echo $x") == "kept\n"


async def test_an_interrupt_that_comes_late_costs_no_cell(interpreter: Interpreter) -> None:
    """The agent repeats itself: bash may take a second signal as it reads the next line, and forget that."""
    await output(interpreter, "x=kept")
    for _ in range(20):
        await interpreter.abandon("echo going; while :; do :; done", until="going", language="bash")
        assert await output(interpreter, "echo $x") == "kept\n"


async def test_a_server_in_the_background_outlives_an_interrupt(interpreter: Interpreter) -> None:
    # Between its fork and its exec bash has not yet told it to ignore the signal.
    runs = 'until [ "$(cat /proc/$!/comm)" = sleep ]; do :; done'
    await output(interpreter, f"{{ sleep 1000 & }} 2>/dev/null; {runs}; echo $! >pid")
    await interpreter.abandon("echo going; sleep 1000", until="going", language="bash")
    assert await output(interpreter, "kill $(cat pid) && echo lived") == "lived\n"


async def test_nothing_waits_for_input_and_long_cells_are_taken(interpreter: Interpreter) -> None:
    assert await output(interpreter, "cat; read line || echo none") == "none\n"
    text = "x" * 100_000
    assert await output(interpreter, f"text='{text}'\necho ${{#text}}") == "100000\n"


async def test_text_comes_while_the_cell_runs(interpreter: Interpreter) -> None:
    code = "echo first; until [ -e go ]; do sleep 0.02; done; echo second"
    stream = await interpreter.stream(code, language="bash")
    async for piece in stream:
        if b"first" in piece:
            break
    assert await interpreter.text("open('go', 'w').close()") is None
    rest = b"".join([piece async for piece in stream])
    assert b"second" in rest
