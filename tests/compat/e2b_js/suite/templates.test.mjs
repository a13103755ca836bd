// Templates through the official builder.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";

import { BuildError, Sandbox, Template, waitForPort } from "e2b";

const newName = () => `js-${randomUUID().slice(0, 12)}`;

/** Call `act` with a sandbox of that template. */
async function withSandbox(template, act) {
  const sandbox = await Sandbox.create(template);
  try {
    await act(sandbox);
  } finally {
    await sandbox.kill();
  }
}

test("js: a template is built, with files, variables and a start command", async () => {
  const folder = await mkdtemp(path.join(tmpdir(), "cloche-"));
  try {
    await writeFile(path.join(folder, "page.html"), "served");
    const name = newName();
    const template = Template({ fileContextPath: folder })
      .fromTemplate("base")
      .setEnvs({ GIVEN: "yes" })
      .copy("page.html", "/srv/www/index.html")
      .setWorkdir("/srv/www")
      .runCmd("echo $GIVEN > given.txt", { user: "root" })
      .setStartCmd("python3 -m http.server 8000", waitForPort(8000));
    const messages = [];
    const built = await Template.build(template, name, { onBuildLogs: (entry) => messages.push(entry.message) });
    assert.ok(built.templateId);
    assert.ok(messages.some((message) => message.includes("RUN echo $GIVEN")));
    assert.equal(await Template.exists(name), true);
    await withSandbox(name, async (sandbox) => {
      const got = await sandbox.commands.run("cat index.html given.txt; pwd");
      assert.equal(got.stdout, "servedyes\n/srv/www\n");
    });
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("js: a failed step says what failed", async () => {
  const template = Template().fromTemplate("base").runCmd("exit 9");
  await assert.rejects(Template.build(template, newName()), (error) => {
    assert.ok(error instanceof BuildError);
    assert.match(error.message, /exit status 9/);
    return true;
  });
});

test("js: tags are assigned, listed and removed", async () => {
  const name = newName();
  const built = await Template.build(Template().fromTemplate("base"), `${name}:v1`, { tags: ["next"] });
  const assigned = await Template.assignTags(`${name}:v1`, "stable");
  assert.equal(assigned.buildId, built.buildId);
  const tags = (await Template.getTags(name)).map((tag) => tag.tag).sort();
  assert.deepEqual(tags, ["next", "stable", "v1"]);
  await Template.removeTags(name, ["stable"]);
  assert.equal((await Template.getTags(name)).length, 2);
});
