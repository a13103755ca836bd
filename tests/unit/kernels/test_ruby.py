"""Ruby as a language, with the ruby of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.kernels.conftest import Interpreter

pytestmark = [pytest.mark.anyio, pytest.mark.needs("ruby")]


async def test_variables_methods_and_values_last(interpreter: Interpreter, tmp_path: Path) -> None:
    texts = [
        await interpreter.text(code, language="ruby")
        for code in ("x = 3", "def twice(a) = a * 2", "twice(x)", "[1, 'a', nil]", "Dir.pwd", "puts 1", "nil")
    ]
    assert texts == ["3", ":twice", "6", '[1, "a", nil]', str(tmp_path), None, None]


async def test_errors_name_class_message_and_line(interpreter: Interpreter) -> None:
    for code, name in (
        ("x = 1\nraise 'bad'", "RuntimeError"),
        ("1 +", "SyntaxError"),
        ("exit", "SystemExit"),
    ):
        execution = await interpreter.run(code, language="ruby")
        assert execution.error is not None
        assert execution.error.name == name
    execution = await interpreter.run("\n\nfail ArgumentError, 'bad'", language="ruby")
    assert execution.error is not None
    assert execution.error.value == "bad"
    assert "cell 4:3" in execution.error.traceback
    assert "kernel.rb" not in execution.error.traceback


async def test_output_keeps_its_order_with_that_of_programs(interpreter: Interpreter) -> None:
    code = "print 'a'; system('printf b'); puts 'c'; warn 'e'"
    execution = await interpreter.run(code, language="ruby")
    assert ("".join(execution.logs.stdout), "".join(execution.logs.stderr)) == ("abc\n", "e\n")


async def test_variables_of_one_run_are_put_back(interpreter: Interpreter) -> None:
    await interpreter.run("ENV['B'] = 'own'", language="rb")
    code = "[ENV['A'], ENV['B']]"
    assert await interpreter.text(code, language="rb", env_vars={"A": "1", "B": "2"}) == '["1", "2"]'
    assert await interpreter.text(code, language="rb") == '[nil, "own"]'


async def test_an_interrupt_keeps_the_state_and_a_fork_has_no_kernel(interpreter: Interpreter) -> None:
    await interpreter.run("x = 4", language="ruby")
    await interpreter.abandon("puts 'going'; loop {}", until="going", language="ruby")
    assert await interpreter.text("x", language="ruby") == "4"
    assert await interpreter.text("Process.wait(fork || :child) rescue 0; x", language="ruby") == "4"
