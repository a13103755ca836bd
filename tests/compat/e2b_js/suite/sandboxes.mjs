// Sandboxes for tests: one that a file shares, fresh ones for those that change something for good.
import { after, before } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { Sandbox } from "@e2b/code-interpreter";

/** Return an object whose `it` is a sandbox while the tests of the file run. */
export function shared() {
  const holder = {};
  before(async () => {
    holder.it = await Sandbox.create({ timeoutMs: 300_000 });
  });
  after(async () => {
    await holder.it.kill();
  });
  return holder;
}

/** Call `act` with a sandbox of its own, which is gone afterwards. */
export async function own(options, act) {
  const sandbox = await Sandbox.create({ timeoutMs: 120_000, ...options });
  try {
    return await act(sandbox);
  } finally {
    await sandbox.kill();
  }
}

/** A promise, and what keeps it. */
export function promised() {
  let keep;
  const promise = new Promise((resolve) => {
    keep = resolve;
  });
  return { promise, keep };
}

/** Ask again and again until the answer is not empty, and return it. */
export async function until(look) {
  for (;;) {
    const answer = await look();
    if (answer) return answer;
    await pause(200);
  }
}
