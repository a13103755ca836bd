// Commands and terminals through the official client.
import assert from "node:assert/strict";
import { test } from "node:test";

import { CommandExitError, Sandbox, TimeoutError } from "@e2b/code-interpreter";

import { promised, shared } from "./sandboxes.mjs";

const sandbox = shared();

test("js: a command has its output and its exit code", async () => {
  const done = await sandbox.it.commands.run("echo out; echo err >&2");
  assert.deepEqual([done.stdout, done.stderr, done.exitCode], ["out\n", "err\n", 0]);
});

test("js: a failed command is an error with all of it", async () => {
  await assert.rejects(sandbox.it.commands.run("echo seen; exit 7"), (error) => {
    assert.ok(error instanceof CommandExitError);
    assert.deepEqual([error.exitCode, error.stdout], [7, "seen\n"]);
    return true;
  });
});

test("js: user, cwd and envs are those of the call", async () => {
  const options = { user: "root", cwd: "/tmp", envs: { GIVEN: "a b" } };
  const done = await sandbox.it.commands.run('whoami; pwd; echo "$GIVEN"', options);
  assert.equal(done.stdout, "root\n/tmp\na b\n");
  assert.equal((await sandbox.it.commands.run("whoami; pwd")).stdout, "user\n/home/user\n");
});

test("js: output is streamed while the command runs", async () => {
  const first = promised();
  const handle = await sandbox.it.commands.run("echo first; read line; echo got $line", {
    background: true,
    stdin: true,
    onStdout: (data) => first.keep(data),
  });
  assert.equal(await first.promise, "first\n");
  await sandbox.it.commands.sendStdin(handle.pid, "word\n");
  assert.equal((await handle.wait()).stdout, "first\ngot word\n");
});

test("js: stdin is closed", async () => {
  const handle = await sandbox.it.commands.run("cat", { background: true, stdin: true });
  await sandbox.it.commands.sendStdin(handle.pid, "all of it");
  await sandbox.it.commands.closeStdin(handle.pid);
  assert.equal((await handle.wait()).stdout, "all of it");
});

test("js: a background command is listed, reached again, killed and gone", async () => {
  const handle = await sandbox.it.commands.run("sleep 300", { background: true });
  const pids = async () => (await sandbox.it.commands.list()).map((found) => found.pid);
  assert.ok((await pids()).includes(handle.pid));
  const again = await sandbox.it.commands.connect(handle.pid);
  assert.equal(await sandbox.it.commands.kill(handle.pid), true);
  await assert.rejects(again.wait(), (error) => error instanceof CommandExitError && /signal: killed/.test(error.error));
  assert.ok(!(await pids()).includes(handle.pid));
  assert.equal(await sandbox.it.commands.kill(handle.pid), false);
  await assert.rejects(handle.wait());
});

test("js: a command that takes too long is ended", async () => {
  await assert.rejects(sandbox.it.commands.run("sleep 300", { timeoutMs: 500 }), TimeoutError);
});

test("js: a long output arrives whole", async () => {
  const done = await sandbox.it.commands.run("head -c 3000000 /dev/zero | tr '\\0' x");
  assert.equal(done.stdout.length, 3_000_000);
});

test("js: a terminal takes input and a new size", async () => {
  const decoder = new TextDecoder();
  let seen = "";
  let wanted = /$^/;
  let arrived = promised();
  const shows = (pattern) => {
    wanted = pattern;
    arrived = promised();
    if (wanted.test(seen)) arrived.keep();
    return arrived.promise;
  };
  const terminal = await sandbox.it.pty.create({
    cols: 80,
    rows: 24,
    onData: (data) => {
      seen += decoder.decode(data, { stream: true });
      if (wanted.test(seen)) arrived.keep();
    },
  });
  const type = (text) => sandbox.it.pty.sendInput(terminal.pid, new TextEncoder().encode(text));
  await type("stty size\n");
  await shows(/24 80/);
  await sandbox.it.pty.resize(terminal.pid, { cols: 100, rows: 30 });
  await type("stty size\n");
  await shows(/30 100/);
  await type("exit\n");
  assert.equal((await terminal.wait()).exitCode, 0);
});

test("js: a killed sandbox says so to a running command", async () => {
  const created = await Sandbox.create({ timeoutMs: 60_000 });
  const handle = await created.commands.run("sleep 300", { background: true });
  await created.kill();
  await assert.rejects(handle.wait(), { name: "TimeoutError", message: /The sandbox was killed/ });
});
