"""The baselines of `cloche bench`: the same work on the same files, with nothing of ours in between.

    crun_true      `crun run` of /bin/true in the template's root    beside creates
    node_version   `node -v`                                         beside create_and_node
    nodes_100      a hundred `node -v`, two at a time                beside burst
    python_import  the template's Python imports IPython and pandas  beside first_run_code
    python_pass    the template's Python runs nothing                beside run_code_hot
    bash_echo      `bash -l -c 'echo 1'`                             beside exec_echo

Run in a mount namespace of its own (`cloche bench` sees to that), with the template's root as its
argument; speaks like official_client.py. The root is bound read-only: a baseline must not change what
sandboxes start from.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NODES = """
from concurrent.futures import ThreadPoolExecutor
from subprocess import check_output
with ThreadPoolExecutor(2) as two:
    list(two.map(lambda _: check_output(["node", "-v"]), range(100)))
"""
USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def bind_read_only(rootfs: str, folder: Path) -> Path:
    """Show the root at a place of its own where nobody can write to it; this namespace alone sees it."""
    target = folder / "rootfs"
    target.mkdir()
    subprocess.run(["mount", "--bind", rootfs, str(target)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
    # crun 1.8 takes an extra cgroup2 mount beside version 1 hierarchies for an error.
    subprocess.run(["umount", "-l", "/sys/fs/cgroup/unified"], check=False, capture_output=True)
    return target


def make_bundle(folder: Path, rootfs: Path) -> list[str]:
    """Write crun's example configuration for /bin/true in that root, and return the command that runs it."""
    subprocess.run(["crun", "spec"], cwd=folder, check=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/true"]}
    config["root"] = {"path": str(rootfs), "readonly": True}
    path.write_text(json.dumps(config))
    state = ["--cgroup-manager=disabled", "--root", str(folder / "state")]
    return ["crun", *state, "run", "--bundle", str(folder), "cloche-baseline"]


def main() -> None:
    """Answer until the input ends."""
    with tempfile.TemporaryDirectory(prefix="cloche-bench-") as name:
        folder = Path(name)
        rootfs = bind_read_only(sys.argv[1], folder)
        inside = ["chroot", str(rootfs), "/usr/bin/env", "-i", f"PATH={USUAL_PATH}", "HOME=/tmp"]
        acts = {
            "crun_true": make_bundle(folder, rootfs),
            "python_import": [*inside, "python3", "-B", "-c", "import IPython.core.interactiveshell, pandas"],
            "python_pass": [*inside, "python3", "-B", "-c", "pass"],
            "bash_echo": [*inside, "bash", "-l", "-c", "echo 1"],
            "node_version": [*inside, "node", "-v"],
            "nodes_100": [*inside, "python3", "-B", "-c", NODES],
        }
        for line in sys.stdin:
            began = time.perf_counter()
            done = subprocess.run(acts[line.strip()], capture_output=True, text=True, check=False)
            took = time.perf_counter() - began
            failed = {"error": done.stderr.strip()[-300:] or str(done.returncode)}
            print(json.dumps({"ms": took * 1000} if done.returncode == 0 else failed), flush=True)
        subprocess.run(["umount", "-l", str(rootfs)], check=False, capture_output=True)


main()
