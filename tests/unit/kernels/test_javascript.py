"""JavaScript and TypeScript cells, with this machine's Node.js."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from tests.unit.kernels.conftest import Interpreter, bound_sandbox, serving

if TYPE_CHECKING:
    from pathlib import Path

    from cloche_wire.execution import Execution

pytestmark = [pytest.mark.anyio, pytest.mark.needs("node")]


async def run(interpreter: Interpreter, code: str, **fields: object) -> Execution:
    return await interpreter.run(code, language="js", **fields)


async def text(interpreter: Interpreter, code: str, **fields: object) -> str | None:
    return await interpreter.text(code, language="js", **fields)


async def test_both_boot_contexts_are_listed_and_javascript_starts_when_it_is_used(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    for _ in range(2):
        _, body = await interpreter.body("GET", "/contexts")
        assert [(item["language"], item["cwd"]) for item in json.loads(body)] == [
            ("python", str(tmp_path)),
            ("javascript", str(tmp_path)),
        ]
    listed = json.loads(body)[1]["id"]
    await text(interpreter, "var kept = 1")
    assert await interpreter.text("kept", context_id=listed) == "1"


async def test_a_template_without_node_lists_python_alone_and_says_what_is_missing(tmp_path: Path) -> None:
    async with serving(bound_sandbox(PATH=str(tmp_path))) as interpreter:
        _, body = await interpreter.body("GET", "/contexts")
        assert [item["language"] for item in json.loads(body)] == ["python"]
        status, answer = await interpreter.body("POST", "/execute", {"code": "1", "language": "js"})
    assert status == 500
    assert "code in JavaScript needs Node.js" in answer


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 + 1", "2"),
        ("x = 5; x", "5"),
        ("'text'", "text"),
        ("'it\\'s \"so\"'", 'it\'s "so"'),
        ("({a: [1, {b: 2}]})", "{ a: [ 1, { b: 2 } ] }"),
        ("[1, 2].map(n => n * 2) // twice", "[ 2, 4 ]"),
        ("null", "null"),
        ("undefined", None),
        ("const only = 'declared'", None),
        ("for (const n of [1]) n", None),
        ("// nothing", None),
        ("f(); function f() { return 'hoisted' }", "hoisted"),
        ("await Promise.resolve('Hello World!')", "Hello World!"),
        ("Promise.resolve('resolved')", "resolved"),
        ("const {a, b: [c], ...rest} = {a: 1, b: [2], d: 3}; [a, c, rest]", "[ 1, 2, { d: 3 } ]"),
        ("import { sep } from 'path'; import * as os from 'node:os'; sep + typeof os.cpus", "/function"),
        ("import path, { join as put } from 'path'; path.join === put", "true"),
        ("(await import('node:path')).sep", "/"),
        ("require('path').sep", "/"),
        ("await null; for (var i = 0; i < 3; i++) { var last = i }; [i, last]", "[ 3, 2 ]"),
        ("await 0; if (false) var no = 1; else var yes = 2; [no, yes]", "[ undefined, 2 ]"),
        ("switch (await 1) { case 1: var hit = 1 }\n[hit]", "[ 1 ]"),
        ("for (var k in await {a: 1}) var seen = k\n;[k, seen]", "[ 'a', 'a' ]"),
        ("#!/usr/bin/env node\nawait 6", "6"),
        ("let none; none = await 4\n;(() => none)()", "4"),
        ("const first = 1\nawait 0\nconst second = 2\n;[first, second]", "[ 1, 2 ]"),
        ("export const out = 1; export default class Shown {}; [out, typeof Shown]", "[ 1, 'function' ]"),
        ("import.meta.url.startsWith('file:///')", "true"),
        ("(5)", "5"),
        ("'use strict'; 7", "7"),
        ("Object.assign(new Error('shown'), {code: 5})", "Error: shown\n    at cell-1:1:15 {\n  code: 5\n}"),
        ("`a\nb`", "a\\nb"),
    ],
)
async def test_the_value_of_the_last_expression_is_the_result(
    interpreter: Interpreter, code: str, expected: str | None
) -> None:
    execution = await run(interpreter, code)
    assert execution.error is None, execution.error
    assert execution.text == expected
    assert len(execution.results) == (expected is not None)


async def test_names_are_kept_and_may_be_declared_again(interpreter: Interpreter) -> None:
    for value in (1, 2):
        await run(
            interpreter, f"const x = {value}; let y = x; class A {{ v = x }}; function f() {{ return y }}"
        )
        await run(
            interpreter, f"await 0; const z = {value}; function g() {{ return z }}; import os from 'os'"
        )
        assert await text(interpreter, "[x, y, new A().v, f(), z, g(), typeof os.cpus]") == (
            f"[ {value}, {value}, {value}, {value}, {value}, {value}, 'function' ]"
        )


async def test_names_that_node_has_taken_may_be_declared(interpreter: Interpreter) -> None:
    taken = "const process = 1, JSON = 2, Buffer = 3, Promise = 4, crypto = 5, fetch = 6; class Map {}"
    assert await text(interpreter, "var crypto = require('crypto'); typeof crypto.createHash") == "function"
    await run(interpreter, taken)
    execution = await run(interpreter, "console.log(crypto); display({}); process + JSON")
    assert (execution.text, execution.logs.stdout, len(execution.results)) == ("3", ["5\n"], 2)


async def test_a_context_counts_its_runs_and_restarts_empty(interpreter: Interpreter) -> None:
    context = await interpreter.new_context(language="JavaScript")
    await interpreter.run("var x = 1", context_id=context)
    assert (await interpreter.run("x", context_id=context)).execution_count == 2
    assert await interpreter.body("POST", f"/contexts/{context}/restart") == (200, "null")
    execution = await interpreter.run("x", context_id=context)
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("ReferenceError", "x is not defined")
    assert execution.execution_count == 1


# --- output


async def test_output_of_the_cell_and_of_its_children_comes_in_order(interpreter: Interpreter) -> None:
    code = (
        "const { execSync } = require('child_process')\n"
        "console.log('one', {a: 1}); execSync('echo two; echo wrong >&2', {stdio: 'inherit'})\n"
        "process.stdout.write('three\\n'); console.error('bad')"
    )
    execution = await run(interpreter, code)
    assert "".join(execution.logs.stdout) == "one { a: 1 }\ntwo\nthree\n"
    assert "".join(execution.logs.stderr) == "wrong\nbad\n"


async def test_a_child_holds_no_descriptor_of_the_kernel(interpreter: Interpreter) -> None:
    code = "require('child_process').execSync('for f in /proc/self/fd/*; do echo ${f##*/}; done').toString()"
    open_ones = (await text(interpreter, code) or "").split("\\n")
    assert "3" not in open_ones or len(open_ones) <= 5  # the shell's own, for the folder it lists


async def test_much_output_arrives_whole(interpreter: Interpreter) -> None:
    code = "for (let n = 0; n < 20000; n++) console.log('x'.repeat(99)); display.text('y'.repeat(3 << 20))"
    execution = await run(interpreter, code)
    assert sum(map(len, execution.logs.stdout)) == 2_000_000
    assert len(execution.results[0].text or "") == 3 << 20


async def test_what_a_cell_displays_is_a_result_that_is_not_the_main_one(interpreter: Interpreter) -> None:
    code = (
        "display.html('<b>h</b>'); $$.svg('<svg/>'); display.png(Buffer.from('abc'))\n"
        "display.json({k: [1]}); display({_toHtml: () => '<i/>'})\n"
        "display({[Symbol.for('Jupyter.display')]: () => ({'a/b': 'c'})}); 5"
    )
    html, svg, png, as_json, own, jupyter, main = (await run(interpreter, code)).results
    assert (html.html, svg.svg, png.png, as_json.json) == ("<b>h</b>", "<svg/>", "YWJj", {"k": [1]})
    assert (own.html, jupyter.extra) == ("<i/>", {"a/b": "c"})
    assert [html.is_main_result, main.is_main_result, main.text] == [False, True, "5"]


async def test_a_result_that_is_too_large_is_left_out_and_said_so(interpreter: Interpreter) -> None:
    execution = await run(
        interpreter, "display.mime({'text/html': 'x'.repeat(33 << 20), 'text/plain': 'small'})"
    )
    assert (execution.results[0].text, execution.results[0].html) == ("small", None)
    assert execution.logs.stderr == ["text/html of a result left out: larger than 32 MiB\n"]


# --- failures


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("nope", "ReferenceError", "nope is not defined"),
        ("await 0; null.x", "TypeError", "Cannot read properties of null (reading 'x')"),
        ("throw new RangeError('far', {cause: new Error('why')})", "RangeError", "far"),
        ("throw 'text'", "Error", "'text'"),
        ("const a = ;", "SyntaxError", "Unexpected token ';'"),
        ("await f(", "SyntaxError", "Unexpected token"),
        ("Promise.reject(new TypeError('later'))", "TypeError", "later"),
        (
            "import { nothing } from 'fs'",
            "SyntaxError",
            "The requested module does not provide an export named",
        ),
        ("import x from 'no-such-package'", "Error", "Cannot find package 'no-such-package'"),
        ("require('no-such-package')", "Error", "Cannot find module 'no-such-package'"),
        ("process.exit(3)", "SystemExit", "3"),
    ],
)
async def test_a_failure_has_a_name_a_value_and_a_traceback_of_the_cell_alone(
    interpreter: Interpreter, code: str, name: str, value: str
) -> None:
    await run(interpreter, "var kept = 1")
    execution = await run(interpreter, code)
    assert execution.error is not None
    assert execution.error.name == name
    assert execution.error.value.startswith(value)
    assert "javascript_kernel" not in execution.error.traceback
    assert "node:" not in execution.error.traceback
    assert await text(interpreter, "kept") == "1"


async def test_a_traceback_points_at_the_line(interpreter: Interpreter) -> None:
    for code in ("let a = 1\n\nnope", "const a = await 1\n\n  nope", "import os from 'os'\n\nnope"):
        execution = await run(interpreter, code)
        assert execution.error is not None
        assert ":3:" in execution.error.traceback


async def test_failures_that_nobody_waits_for_are_told_and_end_nothing(interpreter: Interpreter) -> None:
    code = (
        "setTimeout(() => { throw new Error('in a timer') }, 1); Promise.reject(new Error('unheard'))\n"
        "await new Promise(go => setTimeout(go, 50)); 'alive'"
    )
    execution = await run(interpreter, code)
    told = "".join(execution.logs.stderr)
    assert (execution.text, execution.error) == ("alive", None)
    assert "Uncaught Error: in a timer" in told
    assert "Unhandled rejection: Error: unheard" in told


async def test_a_kernel_that_dies_is_reported_and_replaced(interpreter: Interpreter) -> None:
    execution = await run(interpreter, "process.kill(process.pid, 'SIGKILL'); while (true) {}")
    assert execution.error is not None
    assert execution.error.name == "ContextRestarting"
    assert await text(interpreter, "1 + 1") == "2"


# --- interrupts


@pytest.mark.parametrize(
    "code",
    [
        "while (true) {}",
        "while (true) console.log('x'.repeat(10000))",
        "while (true) display(1)",
        "await new Promise(() => {})",
        "new Promise(() => {})",
        "setInterval(() => {}, 10); await new Promise(() => {})",
        "require('child_process').execSync('sleep 60')",
    ],
)
async def test_a_client_that_goes_away_interrupts_its_code(interpreter: Interpreter, code: str) -> None:
    await run(interpreter, "var kept = 1")
    for _ in range(3):
        await interpreter.abandon("console.log('started')\n" + code, until="started", language="js")
        async with asyncio.timeout(30):
            execution = await run(interpreter, "console.log('heard'); kept")
        assert (execution.text, execution.error) == ("1", None)
        assert execution.logs.stdout == ["heard\n"]


async def test_an_interrupt_that_comes_as_its_cell_ends_ends_nothing_else(interpreter: Interpreter) -> None:
    """Neither the next cell nor the context: Node's own handling of the signal does both now and then."""
    await run(interpreter, "var kept = 1")
    for number in range(300):
        code = f"console.log('started'); for (let n = 0; n < {number % 30 * 40000}; n++);"
        await interpreter.abandon(code, until="started", language="js")
        execution = await run(interpreter, "await null; kept")
        assert (execution.text, execution.error) == ("1", None)


async def test_a_module_that_was_interrupted_as_it_loaded_is_loaded_anew(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    """A package of the user's, and one of Node's own: the first use of `fetch` loads for 10 ms."""
    source = "exports.half = 1; console.log('started'); while (globalThis.isSlow); exports.whole = 2"
    (tmp_path / "package.js").write_text(source)
    await interpreter.abandon("isSlow = true; require('./package')", until="started", language="js")
    assert await text(interpreter, "isSlow = false; require('./package').whole") == "2"
    await interpreter.abandon("console.log('started'); fetch('data:,')", until="started", language="js")
    assert await text(interpreter, "await (await fetch('data:,whole')).text()") == "whole"


async def test_cells_that_listen_to_the_signal_are_interrupted_too(interpreter: Interpreter) -> None:
    await run(interpreter, "var heard = 0; process.on('SIGINT', () => heard++)")
    for code in ("while (true);", "await new Promise(() => {})"):
        await interpreter.abandon(f"console.log('started'); {code}", until="started", language="js")
        assert await text(interpreter, "heard") == "0"


# --- folder and variables


async def test_a_context_starts_in_its_folder_and_nowhere_else(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    assert await text(interpreter, "process.cwd()") == str(tmp_path)
    (tmp_path / "module.mjs").write_text("export default 'found'")
    (tmp_path / "module.cjs").write_text("module.exports = 'required'")
    assert await text(interpreter, "import found from './module.mjs'; found") == "found"
    assert await text(interpreter, "require('./module.cjs')") == "required"
    status, answer = await interpreter.body("POST", "/contexts", {"language": "js", "cwd": "/no/such"})
    assert (status, answer) == (500, "Failed to set working directory: /no/such: No such file or directory")


async def test_variables_are_set_overwritten_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloche_agent.kernels.service.DEFAULT_CWD", str(tmp_path))
    async with serving(bound_sandbox(OF_SANDBOX="1")) as interpreter:
        code = "await 0; [process.env.OF_SANDBOX, process.env.FOO ?? 'none']"
        assert await text(interpreter, code) == "[ '1', 'none' ]"
        assert await text(interpreter, code, env_vars={"FOO": "a'b", "OF_SANDBOX": "2"}) == "[ '2', \"a'b\" ]"
        await run(interpreter, "throw 1", env_vars={"FOO": "x"})
        assert await text(interpreter, code) == "[ '1', 'none' ]"
        interpreter.sandbox.apply({"envVars": {**interpreter.sandbox.env, "OF_SANDBOX": "later"}})
        assert await text(interpreter, code) == "[ 'later', 'none' ]"


async def test_programs_started_with_node_get_no_option_of_the_kernel(interpreter: Interpreter) -> None:
    code = "[process.execArgv, process.argv.length, process.env.NODE_OPTIONS]"
    assert await text(interpreter, code) == "[ [], 1, undefined ]"
    code = (
        "import { builtinModules } from 'module'; builtinModules.filter(name => name.startsWith('internal'))"
    )
    assert await text(interpreter, code) == "[]"


DRAWN = """
const bytes = new Uint32Array(4), part = new Uint8Array(8)
const [filled, int] = await Promise.all([
  new Promise((done, fail) => crypto2.randomFill(Buffer.alloc(8), 4, (e, b) => e ? fail(e) : done(b))),
  new Promise((done, fail) => crypto2.randomInt(5, 8, (e, n) => e ? fail(e) : done(n))),
])
const many = Array.from({ length: 300 }, () => crypto2.randomInt(3))
;[random() >= 0 && random() < 1, new Set(Array.from({ length: 1000 }, random)).size === 1000,
  randomBytes(70000).length === 70000 && new Set(randomBytes(70000)).size === 256,
  filled.subarray(0, 4).equals(Buffer.alloc(4)) && !filled.subarray(4).equals(Buffer.alloc(4)),
  int >= 5 && int < 8,
  Math.min(...many) === 0 && Math.max(...many) === 2 && new Set(many).size === 3,
  crypto2.randomFillSync(part, 2, 4) === part && part[0] + part[1] + part[6] + part[7] === 0,
  globalThis.crypto.getRandomValues(bytes) === bytes && new Set(bytes).size === 4,
  /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(globalThis.crypto.randomUUID()),
  crypto2.randomUUID() !== crypto2.randomUUID(),
  (() => { try { crypto2.randomInt(5, 5) } catch (e) { return e.code === "ERR_OUT_OF_RANGE" } })(),
].join()
"""


async def test_what_draws_numbers_does_so_before_a_restore_and_after(interpreter: Interpreter) -> None:
    """That siblings draw other ones is claimed with real ones (compat/e2b_python/memory_suite)."""
    imports = "import { randomBytes } from 'node:crypto'; import crypto2 from 'node:crypto'; "
    imports += "const random = Math.random"
    assert (await run(interpreter, imports)).error is None
    expected = ",".join(["true"] * 11)
    assert await text(interpreter, DRAWN) == expected
    interpreter.sandbox.apply({"restored": True})
    for renew in interpreter.sandbox.on_restore:
        await renew()
    assert await text(interpreter, DRAWN) == expected
