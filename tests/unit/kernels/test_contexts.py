"""Contexts: their routes, their tokens, their environment, their turns."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from tests.unit.kernels.conftest import TOKEN, Interpreter, bound_sandbox, serving

from cloche_agent.init import Sandbox
from cloche_wire.errors import InvalidArgument, NotFound, Unauthenticated

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def test_health_answers_ok_before_init_and_nothing_else_does() -> None:
    async with serving(Sandbox()) as interpreter:
        assert await interpreter.body("GET", "/health") == (200, '"OK"')
        for method, path in (("POST", "/execute"), ("GET", "/contexts"), ("POST", "/contexts")):
            for token in (TOKEN, "", None):
                with pytest.raises(Unauthenticated):
                    await interpreter.call(method, path, {"code": "1"}, token)


async def test_execute_takes_the_right_token_only(interpreter: Interpreter) -> None:
    for token in (None, "", TOKEN[:-1], TOKEN.upper(), "another"):
        with pytest.raises(Unauthenticated):
            await interpreter.call("POST", "/execute", {"code": "1"}, token)


async def test_contexts_are_served_without_a_token_and_not_with_a_wrong_one(interpreter: Interpreter) -> None:
    assert (await interpreter.call("GET", "/contexts", token=None)).status == 200
    with pytest.raises(Unauthenticated):
        await interpreter.call("GET", "/contexts", token="wrong")


async def test_the_default_context_is_listed_first_and_once(interpreter: Interpreter, tmp_path: Path) -> None:
    created = await interpreter.new_context(cwd="/")
    _, body = await interpreter.body("GET", "/contexts")
    first, *_, last = json.loads(body)
    assert (first["language"], first["cwd"]) == ("python", str(tmp_path))
    assert last == {"id": created, "language": "python", "cwd": "/"}


async def test_a_context_starts_in_its_folder(interpreter: Interpreter, tmp_path: Path) -> None:
    assert await interpreter.text("import os; os.getcwd()") == str(tmp_path)
    folder = tmp_path / "with space"
    folder.mkdir()
    context = await interpreter.new_context(cwd=str(folder))
    assert await interpreter.text("import os; os.getcwd()", context_id=context) == str(folder)


async def test_a_template_without_the_usual_folder_starts_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloche_agent.kernels.service.DEFAULT_CWD", str(tmp_path / "missing"))
    async with serving(bound_sandbox()) as interpreter:
        assert await interpreter.text("import os; os.path.isdir(os.getcwd())") == "True"


async def test_a_context_in_a_missing_folder_is_refused(interpreter: Interpreter) -> None:
    status, text = await interpreter.body("POST", "/contexts", {"cwd": "/no/such/folder"})
    assert status == 500
    assert text == "Failed to set working directory: /no/such/folder: No such file or directory"


async def test_contexts_share_no_names(interpreter: Interpreter) -> None:
    context = await interpreter.new_context()
    await interpreter.run("x = 1")
    execution = await interpreter.run("x", context_id=context)
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("NameError", "name 'x' is not defined")


async def test_names_and_counts_are_kept_between_runs(interpreter: Interpreter) -> None:
    assert (await interpreter.run("x = 41")).execution_count == 1
    execution = await interpreter.run("x + 1", language="Python ")
    assert (execution.text, execution.execution_count) == ("42", 2)


async def test_a_restarted_context_is_empty_and_counts_anew(interpreter: Interpreter) -> None:
    context = await interpreter.new_context()
    await interpreter.run("x = 1", context_id=context)
    assert await interpreter.body("POST", f"/contexts/{context}/restart") == (200, "null")
    execution = await interpreter.run("x", context_id=context)
    assert execution.error is not None
    assert (execution.error.name, execution.execution_count) == ("NameError", 1)


async def test_a_removed_context_is_gone(interpreter: Interpreter) -> None:
    context = await interpreter.new_context()
    assert await interpreter.body("DELETE", f"/contexts/{context}") == (200, "null")
    missing = (404, f"Context {context} not found")
    assert await interpreter.body("DELETE", f"/contexts/{context}") == missing
    assert await interpreter.body("POST", f"/contexts/{context}/restart") == missing
    assert await interpreter.body("POST", "/execute", {"code": "1", "context_id": context}) == missing
    assert context not in (await interpreter.body("GET", "/contexts"))[1]


async def test_a_removed_default_context_is_replaced(interpreter: Interpreter) -> None:
    await interpreter.run("x = 1")
    assert await interpreter.body("DELETE", "/contexts/default") == (200, "null")
    assert (await interpreter.run("'x' in globals()")).text == "False"


async def test_context_and_language_exclude_each_other(interpreter: Interpreter) -> None:
    body = {"code": "1", "context_id": "default", "language": "python"}
    refusal = (400, "Only one of context_id or language can be provided")
    assert await interpreter.body("POST", "/execute", body) == refusal


async def test_a_language_without_a_kernel_is_named(interpreter: Interpreter) -> None:
    for method, path, body in (
        ("POST", "/execute", {"code": "1", "language": "cobol"}),
        ("POST", "/contexts", {"language": "COBOL"}),
    ):
        status, text = await interpreter.body(method, path, body)
        assert status == 500
        assert "'cobol'" in text


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"code": 1},
        {"code": None},
        {"code": "1", "context_id": 5},
        {"code": "1", "env_vars": []},
        {"code": "1", "env_vars": {"A": 1}},
        {"code": "1", "env_vars": {"A=B": "1"}},
        {"code": "1", "env_vars": {"A": "\0"}},
    ],
)
async def test_a_malformed_request_is_refused(interpreter: Interpreter, body: object) -> None:
    with pytest.raises(InvalidArgument):
        await interpreter.call("POST", "/execute", body)


async def test_other_routes_do_not_exist(interpreter: Interpreter) -> None:
    for method, path in (
        ("GET", "/execute"),
        ("PUT", "/contexts"),
        ("GET", "/"),
        ("POST", "/contexts/a/b/c"),
    ):
        with pytest.raises(NotFound):
            await interpreter.call(method, path, {})


# --- environment


async def test_a_kernel_sees_the_variables_of_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloche_agent.kernels.service.DEFAULT_CWD", str(tmp_path))
    async with serving(bound_sandbox(TEST_ENV_VAR="supertest")) as interpreter:
        code = "import os; os.getenv('TEST_ENV_VAR')"
        assert await interpreter.text(code) == "supertest"
        assert await interpreter.text(code, env_vars={"TEST_ENV_VAR": "overwrite"}) == "overwrite"
        assert await interpreter.text(code) == "supertest"
        interpreter.sandbox.apply({"envVars": {**interpreter.sandbox.env, "TEST_ENV_VAR": "later"}})
        assert await interpreter.text(code) == "later"


async def test_variables_of_a_run_end_with_it_even_when_it_fails(interpreter: Interpreter) -> None:
    execution = await interpreter.run(
        "import os; print(os.environ['FOO']); 1/0", env_vars={"FOO": "b'\"\nar"}
    )
    assert execution.logs.stdout == ["b'\"\nar\n"]
    assert await interpreter.text("os.getenv('FOO', 'default')") == "default"


# --- turns


async def test_runs_of_one_context_take_turns_and_those_of_two_are_parallel(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    other = await interpreter.new_context()
    wait = (
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)"
    )
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(interpreter.run(wait + "\nx = 1"))
        await interpreter.run("1", context_id=other)
        second = tasks.create_task(interpreter.text("x"))
        # Would wait for ever if contexts were not parallel.
        await interpreter.run(f"open({str(tmp_path / 'go')!r}, 'w').close()", context_id=other)
    assert first.result().error is None
    assert second.result() == "1"


async def test_a_silent_run_sends_keepalives(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cloche_agent.kernels.run.KEEPALIVE_S", 0.02)
    go, keepalive = tmp_path / "go", b'{"type":"keepalive"}\n'
    code = f"import pathlib, time\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)"
    sent = b""
    async for piece in await interpreter.stream(code):
        sent += piece
        if sent.count(keepalive) == 5:
            go.touch()
    assert sent.endswith(b'{"type":"end_of_execution"}\n')
    assert all(line + b"\n" == keepalive for line in sent.splitlines() if b"keepalive" in line)
