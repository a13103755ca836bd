// Volumes through the official client.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";

import { Volume, VolumePathNotFoundError } from "e2b";

import { own } from "./sandboxes.mjs";

/** Call `act` with a volume of its own, which is gone afterwards. */
async function withVolume(act) {
  const volume = await Volume.create(`js-${randomUUID()}`);
  try {
    await act(volume);
  } finally {
    assert.equal(await Volume.destroy(volume.volumeId), true);
  }
}

test("js: a volume is found by its name and destroyed once", async () => {
  let id = "";
  await withVolume(async (volume) => {
    id = volume.volumeId;
    const listed = await Volume.list();
    assert.deepEqual(
      listed.filter((found) => found.volumeId === id).map((found) => found.name),
      [volume.name],
    );
  });
  assert.equal(await Volume.destroy(id), false);
});

test("js: files of a volume are written, read, listed and removed", async () => {
  await withVolume(async (volume) => {
    await volume.makeDir("/folder");
    await volume.writeFile("/folder/file.txt", "kept");
    assert.equal(await volume.readFile("/folder/file.txt"), "kept");
    assert.deepEqual((await volume.list("/folder")).map((entry) => [entry.name, entry.size]), [["file.txt", 4]]);
    await volume.remove("/folder/file.txt");
    await assert.rejects(volume.readFile("/folder/file.txt"), VolumePathNotFoundError);
  });
});

test("js: a sandbox sees what is in its volume, and what it writes stays", async () => {
  await withVolume(async (volume) => {
    await volume.writeFile("/given.txt", "given");
    await own({ volumeMounts: { "/mnt/kept": volume } }, async (sandbox) => {
      const done = await sandbox.commands.run("cat /mnt/kept/given.txt; echo -n made > /mnt/kept/made.txt");
      assert.equal(done.stdout, "given");
    });
    assert.equal(await volume.readFile("/made.txt"), "made");
  });
});
