// Run under node with an older official client: what every one of them can do, printed as one line of JSON.
import { Sandbox } from "e2b-2.26";

const path = "/home/user/kept.txt";
const sandbox = await Sandbox.create({ timeoutMs: 60_000, envs: { GIVEN: "yes" } });
const told = {};
try {
  told.echo = (await sandbox.commands.run("echo $GIVEN; whoami")).stdout;
  await sandbox.files.write(path, "kept");
  const again = await Sandbox.connect(sandbox.sandboxId);
  told.file = await again.files.read(path);
  told.cat = (await again.commands.run(`cat ${path}`)).stdout;
  told.listed = (await again.files.list("/home/user")).some((entry) => entry.name === "kept.txt");
  told.found = (await Sandbox.list().nextItems()).some((item) => item.sandboxId === sandbox.sandboxId);
} finally {
  await sandbox.kill();
}
told.running = await sandbox.isRunning();
console.log(JSON.stringify(told));
