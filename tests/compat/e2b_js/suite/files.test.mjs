// Files through the official client.
import assert from "node:assert/strict";
import { test } from "node:test";

import { FileType, FilesystemEventType } from "e2b";
import { FileNotFoundError, NotFoundError } from "@e2b/code-interpreter";

import { promised, shared } from "./sandboxes.mjs";

const sandbox = shared();

test("js: text, bytes and blobs come back as they were written", async () => {
  const files = sandbox.it.files;
  await files.write("/home/user/text.txt", "grüße\n");
  assert.equal(await files.read("text.txt"), "grüße\n");
  const bytes = new Uint8Array([0, 255, 10, 13, 128]);
  await files.write("bytes", bytes.buffer);
  assert.deepEqual(await files.read("bytes", { format: "bytes" }), bytes);
  const blob = await files.read("bytes", { format: "blob" });
  assert.deepEqual(new Uint8Array(await blob.arrayBuffer()), bytes);
});

test("js: an empty file is read as empty", async () => {
  await sandbox.it.files.write("empty", "");
  assert.equal(await sandbox.it.files.read("empty"), "");
});

test("js: several files are written at once, in order, and their folders are made", async () => {
  const written = await sandbox.it.files.write([
    { path: "deep/er/one.txt", data: "1" },
    { path: "two.txt", data: "2" },
  ]);
  assert.deepEqual(written.map((info) => info.path), ["/home/user/deep/er/one.txt", "/home/user/two.txt"]);
  const info = await sandbox.it.files.getInfo("deep/er/one.txt");
  assert.deepEqual([info.type, info.size, info.owner, info.mode], [FileType.FILE, 1, "user", 0o644]);
});

test("js: a stream is read piece by piece", async () => {
  const text = "0123456789".repeat(50_000);
  await sandbox.it.files.write("long", text);
  let read = "";
  const decoder = new TextDecoder();
  for await (const piece of await sandbox.it.files.read("long", { format: "stream" })) {
    read += decoder.decode(piece, { stream: true });
  }
  assert.equal(read, text);
});

test("js: make, list, exists, rename, remove", async () => {
  const files = sandbox.it.files;
  assert.equal(await files.makeDir("tree/leaf"), true);
  assert.equal(await files.makeDir("tree/leaf"), false);
  await files.write("tree/file", "x");
  const listed = (await files.list("tree")).map((entry) => [entry.name, entry.type]);
  assert.deepEqual(listed.sort(), [["file", FileType.FILE], ["leaf", FileType.DIR]]);
  assert.equal((await files.rename("tree/file", "tree/renamed")).path, "/home/user/tree/renamed");
  assert.equal(await files.exists("tree/file"), false);
  await files.remove("tree");
  assert.equal(await files.exists("tree"), false);
});

test("js: a missing file is told as such", async () => {
  const isMissing = (error) => error instanceof FileNotFoundError || error instanceof NotFoundError;
  await assert.rejects(sandbox.it.files.read("nowhere"), isMissing);
  await assert.rejects(sandbox.it.files.list("nowhere"), isMissing);
});

test("js: a watcher reports what happens in its folder", async () => {
  await sandbox.it.files.makeDir("watched");
  const seen = promised();
  const watcher = await sandbox.it.files.watchDir("watched", (event) => {
    if (event.type === FilesystemEventType.WRITE) seen.keep(event);
  });
  await sandbox.it.files.write("watched/new.txt", "x");
  assert.equal((await seen.promise).name, "new.txt");
  await watcher.stop();
});

test("js: a watcher of a whole tree reports what happens below", async () => {
  await sandbox.it.files.makeDir("whole/part");
  const seen = promised();
  const watcher = await sandbox.it.files.watchDir(
    "whole",
    (event) => {
      if (event.name === "part/new.txt") seen.keep(event);
    },
    { recursive: true },
  );
  await sandbox.it.files.write("whole/part/new.txt", "x");
  await seen.promise;
  await watcher.stop();
});

test("js: signed urls need no headers and bear no change", async () => {
  const upload = await sandbox.it.uploadUrl("signed file.txt", { useSignatureExpiration: 60 });
  const form = new FormData();
  form.append("file", new Blob(["by url"]), "signed file.txt");
  const sent = await fetch(upload, { method: "POST", body: form });
  assert.equal(sent.status, 200, await sent.text());
  const download = await sandbox.it.downloadUrl("signed file.txt");
  assert.equal(await (await fetch(download)).text(), "by url");
  const changed = await fetch(download.replace("signature=v1_", "signature=v1_0"));
  assert.ok([401, 404].includes(changed.status), `${changed.status}`);
});
