// The official client creates, finds, connects to, extends and kills sandboxes.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";

import { AuthenticationError, NotFoundError, Sandbox, SandboxNotFoundError } from "@e2b/code-interpreter";
import { Sandbox as CoreSandbox } from "e2b";

import { own, shared, until } from "./sandboxes.mjs";

const sandbox = shared();

test("js: a created sandbox runs and has an id that fits a host label", async () => {
  assert.equal(await sandbox.it.isRunning(), true);
  assert.match(sandbox.it.sandboxId, /^[a-z0-9]+$/);
});

test("js: info tells what was asked for", async () => {
  await own({ metadata: { purpose: "info" } }, async (created) => {
    const info = await created.getInfo();
    assert.equal(info.sandboxId, created.sandboxId);
    assert.deepEqual(info.metadata, { purpose: "info" });
    assert.equal(info.state, "running");
    const seconds = (info.endAt.getTime() - info.startedAt.getTime()) / 1000;
    assert.ok(seconds >= 100 && seconds <= 125, `${seconds}`);
  });
});

test("js: list finds a sandbox by its metadata and goes on page by page", async () => {
  const mark = randomUUID();
  const metadata = { mark, "with space": "a&b=c" };
  await own({ metadata }, async (first) => {
    await own({ metadata }, async (second) => {
      const pages = Sandbox.list({ query: { metadata }, limit: 1 });
      const listed = [];
      while (pages.hasNext) listed.push((await pages.nextItems()).map((item) => item.sandboxId));
      assert.deepEqual(listed, [[second.sandboxId], [first.sandboxId]]);
    });
  });
});

test("js: connect reaches the same sandbox with its files", async () => {
  await sandbox.it.files.write("/home/user/kept.txt", "kept");
  const again = await Sandbox.connect(sandbox.it.sandboxId);
  assert.equal(await again.files.read("/home/user/kept.txt"), "kept");
});

test("js: set timeout moves the end both ways", async () => {
  await own({}, async (created) => {
    const left = async () => (await created.getInfo()).endAt.getTime() - Date.now();
    await created.setTimeout(600_000);
    assert.ok((await left()) > 500_000);
    await created.setTimeout(60_000);
    assert.ok((await left()) < 100_000);
  });
});

test("js: metrics tell what it uses, bucket by bucket", async () => {
  // Measured every 5 s, so there are none at first.
  const found = await until(async () => {
    const metrics = await sandbox.it.getMetrics();
    return metrics.length > 0 && metrics;
  });
  const latest = found.at(-1);
  assert.ok(latest.timestamp instanceof Date);
  assert.ok(latest.cpuCount >= 1 && latest.cpuUsedPct >= 0);
  assert.ok(latest.memUsed > 0 && latest.memUsed <= latest.memTotal);
  assert.ok(latest.diskTotal > 0);
  const later = new Date(Date.now() + 3_600_000);
  assert.deepEqual(await sandbox.it.getMetrics({ start: later }), []);
});

test("js: kill ends it at once and only once", async () => {
  const created = await Sandbox.create({ timeoutMs: 60_000 });
  assert.equal(await Sandbox.kill(created.sandboxId), true);
  assert.equal(await created.isRunning(), false);
  assert.equal(await Sandbox.kill(created.sandboxId), false);
});

test("js: the core client takes the template base", async () => {
  const created = await CoreSandbox.create("base", { timeoutMs: 60_000, envs: { GIVEN: "yes" } });
  try {
    assert.equal((await created.commands.run("echo $GIVEN")).stdout, "yes\n");
  } finally {
    await created.kill();
  }
});

test("js: unknown sandboxes, templates and keys are refused", async () => {
  await assert.rejects(Sandbox.connect("inobodyknowsthisone00"), (error) => {
    return error instanceof SandboxNotFoundError || error instanceof NotFoundError;
  });
  await assert.rejects(Sandbox.create("no-such-template"), /404|not found/);
  await assert.rejects(Sandbox.create({ apiKey: `e2b_${"0".repeat(40)}` }), AuthenticationError);
});
