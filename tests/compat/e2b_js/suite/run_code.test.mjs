// Code through the official client of the interpreter.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Sandbox } from "@e2b/code-interpreter";

import { own, promised, shared } from "./sandboxes.mjs";

const sandbox = shared();

test("js: the last expression is the result, and state is kept", async () => {
  await sandbox.it.runCode("x = 41");
  const execution = await sandbox.it.runCode("x + 1");
  assert.equal(execution.text, "42");
  assert.equal(execution.error, undefined);
});

test("js: output, results and errors are streamed", async () => {
  const told = { out: [], err: [], results: [] };
  const execution = await sandbox.it.runCode(
    "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay('shown')\n'last'",
    {
      onStdout: (output) => told.out.push(output.line),
      onStderr: (output) => told.err.push(output.line),
      onResult: (result) => told.results.push(result.isMainResult),
    },
  );
  assert.deepEqual([told.out.join(""), told.err.join("")], ["out\n", "err\n"]);
  assert.deepEqual(told.results, [false, true]);
  assert.deepEqual(execution.logs, { stdout: ["out\n"], stderr: ["err\n"] });
});

test("js: output arrives while the cell still runs", async () => {
  const first = promised();
  const running = sandbox.it.runCode(
    "import os, time\nprint('first', flush=True)\nwhile not os.path.exists('/tmp/go'): time.sleep(0.02)\n'done'",
    { onStdout: () => first.keep() },
  );
  await first.promise;
  await sandbox.it.files.write("/tmp/go", "");
  assert.equal((await running).text, "done");
});

test("js: an error has a name, a value and a traceback", async () => {
  const told = [];
  const { error } = await sandbox.it.runCode("1 / 0", { onError: (found) => told.push(found.name) });
  assert.deepEqual([error.name, error.value], ["ZeroDivisionError", "division by zero"]);
  assert.match(error.traceback, /1 \/ 0/);
  assert.deepEqual(told, ["ZeroDivisionError"]);
});

test("js: a figure comes back as a png, a data frame as html", async () => {
  const figure = await sandbox.it.runCode("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()");
  const png = Buffer.from(figure.results[0].png, "base64");
  assert.equal(png.subarray(1, 4).toString(), "PNG");
  const frame = await sandbox.it.runCode("import pandas\npandas.DataFrame({'a': [1, 2]})");
  assert.match(frame.results[0].html, /<table/);
  assert.deepEqual(frame.results[0].data, { a: [1, 2] });
});

test("js: envs of a call override those of the sandbox and go away", async () => {
  await own({ envs: { COLOUR: "red" } }, async (created) => {
    const colour = async (options) => (await created.runCode("import os; os.environ['COLOUR']", options)).text;
    assert.equal(await colour(), "red");
    assert.equal(await colour({ envs: { COLOUR: "blue" } }), "blue");
    assert.equal(await colour(), "red");
  });
});

test("js: contexts are apart, listed, restarted and removed", async () => {
  const context = await sandbox.it.createCodeContext({ cwd: "/tmp" });
  await sandbox.it.runCode("only_here = 1", { context });
  assert.equal((await sandbox.it.runCode("import os; os.getcwd()", { context })).text, "/tmp");
  assert.equal((await sandbox.it.runCode("only_here")).error.name, "NameError");
  const ids = async () => (await sandbox.it.listCodeContexts()).map((found) => found.id);
  assert.ok((await ids()).includes(context.id));
  await sandbox.it.restartCodeContext(context);
  assert.equal((await sandbox.it.runCode("only_here", { context })).error.name, "NameError");
  await sandbox.it.removeCodeContext(context);
  assert.ok(!(await ids()).includes(context.id));
});

test("js: a cell that takes too long is interrupted and the next one runs", async () => {
  await assert.rejects(sandbox.it.runCode("import time; time.sleep(300)", { timeoutMs: 1000 }), /timed? ?out/i);
  assert.equal((await sandbox.it.runCode("'alive'")).text, "alive");
});

test("js: a killed sandbox says so to a running cell", async () => {
  const created = await Sandbox.create({ timeoutMs: 60_000 });
  const started = promised();
  const running = created.runCode("import time\nprint('up', flush=True)\ntime.sleep(300)", {
    onStdout: () => started.keep(),
  });
  const refused = assert.rejects(running, { name: "TimeoutError", message: /The sandbox was killed/ });
  await started.promise;
  await created.kill();
  await refused;
});
