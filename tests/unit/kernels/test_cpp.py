"""C++ as a language: cells compiled by the g++ of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.kernels.conftest import bound_sandbox, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.kernels.conftest import Interpreter

    from cloche_wire.execution import Execution

pytestmark = [pytest.mark.anyio, pytest.mark.needs("g++")]


@pytest.fixture
async def interpreter(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Interpreter]:
    # The compiled header is kept from test to test, and not in the home of who runs them.
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setattr("cloche_agent.kernels.service.DEFAULT_CWD", str(tmp_path))
    async with serving(bound_sandbox(XDG_CACHE_HOME=str(cache))) as served:
        yield served


async def run(interpreter: Interpreter, code: str, **fields: object) -> Execution:
    return await interpreter.run(code, language="cpp", **fields)


async def values(interpreter: Interpreter, *cells: str) -> list[str | None]:
    return [await interpreter.text(code, language="C++") for code in cells]


async def failure(interpreter: Interpreter, code: str) -> tuple[str, str]:
    error = (await run(interpreter, code)).error
    assert error is not None
    return error.name, error.value


async def test_what_cells_declare_lasts(interpreter: Interpreter) -> None:
    cells = (
        "#include <map>\n#include <vector>\nusing namespace std;\nint x = 3; vector<int> v{1, 2};",
        "x += 2; v.push_back(x); auto square = [](int a) { return a * a; };",
        "struct P { int a; string b; }; P p{square(x), \"b\"}; map<string, vector<int>> m{{\"k\", v}};",
        "p.a", "v", "m", "x > 1", '"text"', "p",
    )  # fmt: skip
    assert await values(interpreter, *cells) == [
        None, None, None, "25", "{1, 2, 5}", '{("k", {1, 2, 5})}', "true", "text", "<P>",
    ]  # fmt: skip


async def test_a_name_can_be_declared_anew_and_its_users_follow(interpreter: Interpreter) -> None:
    cells = (
        "int x = 1; int f() { return x; }",
        "double x = 2.5;",
        "f()",
        "x",
        "int f() { return 7; }",
        "f()",
    )
    assert await values(interpreter, *cells) == [None, None, "2", "2.5", None, "7"]
    # The new one may stand on what came after the old one.
    assert await values(interpreter, "int y = 1;", "int g() { return 5; }", "int y = g() + 1;", "y")


async def test_a_whole_program_is_run_by_its_main(interpreter: Interpreter) -> None:
    code = '#include <iostream>\nint main() {\n    std::cout << "Hello" << std::endl;\n    return 0;\n}'
    for _ in range(2):
        execution = await run(interpreter, code)
        assert (execution.error, execution.logs.stdout) == (None, ["Hello\n"])
    assert await failure(interpreter, "int main(int n, char **words) { return n + 2; }") == ("int", "3")


async def test_an_error_keeps_what_was_done_before_it(interpreter: Interpreter) -> None:
    code = '#include <stdexcept>\nint x = 1; throw std::runtime_error("bad"); int never = 2;'
    assert await failure(interpreter, code) == ("std::runtime_error", "bad")
    assert await values(interpreter, "x") == ["1"]
    name, value = await failure(interpreter, "never")
    assert name == "CompileError"
    assert "never" in value
    assert await failure(interpreter, "throw 5;") == ("int", "5")


async def test_the_compiler_names_the_line_of_the_cell(interpreter: Interpreter) -> None:
    execution = await run(interpreter, 'int fine = 1;\nint bad = "text";')
    assert execution.error is not None
    assert execution.error.name == "CompileError"
    assert "cell 1:2:" in execution.error.traceback
    assert (await failure(interpreter, "fine"))[0] == "CompileError"  # nothing of that cell was run


async def test_output_and_variables_go_through(interpreter: Interpreter) -> None:
    includes = "#include <cstdio>\n#include <cstdlib>\n#include <iostream>\n"
    execution = await run(interpreter, includes + 'std::cout << "a "; printf("b"); std::cerr << "e";')
    assert ("".join(execution.logs.stdout), "".join(execution.logs.stderr)) == ("a b", "e")
    shown = await run(interpreter, 'getenv("FOO")', env_vars={"FOO": "bar"})
    assert shown.text == "bar"
    assert await values(interpreter, 'getenv("FOO") == nullptr', 'setenv("FOO", "own", 1)') == ["true", "0"]
    assert (await run(interpreter, 'getenv("FOO")', env_vars={"FOO": "bar"})).text == "bar"
    assert await values(interpreter, 'getenv("FOO")') == ["own"]


async def test_an_interrupt_ends_a_loop_and_keeps_the_state(interpreter: Interpreter) -> None:
    await run(interpreter, "#include <iostream>\nint x = 4;")
    loop = 'x = 5; std::cout << "going" << std::endl; while (true) {}'
    await interpreter.abandon(loop, until="going", language="cpp")
    assert await values(interpreter, "x") == ["5"]


async def test_a_fault_ends_the_context_and_the_next_cell_has_a_new_one(interpreter: Interpreter) -> None:
    name, value = await failure(interpreter, "int *nowhere = nullptr; *nowhere = 1;")
    assert name == "ContextRestarting"
    assert "SIGSEGV" in value
    assert await values(interpreter, "1 + 1") == ["2"]
