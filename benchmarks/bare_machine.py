"""The baselines of `cloche bench`: the same work on the same files, with nothing of ours in between.

    crun_true      `crun run` of /bin/true in the template's root    beside creates
    node_version   `node -v`                                         beside create_and_node
    nodes_100      a hundred `node -v`, two at a time                beside burst
    python_import  the template's Python imports IPython and pandas  beside first_run_code
    python_pass    the template's Python runs nothing                beside run_code_hot
    bash_echo      `bash -l -c 'echo 1'`                             beside exec_echo
    bash_loop      the same 25 times, then 5 at once                 beside exec_loop
    crun_loop      crun_true one after the other                     beside creates_per_s
    bwrap_python   `bwrap --unshare-all` of the template's Python    beside create_warm
    runsc_true     `runsc run` of /bin/true, without a network       beside create_warm
    runsc_...      see `bare_runsc`
    buildah_...    see `bare_buildah`

Run in a mount namespace of its own (`cloche bench` sees to that), with the template's root as its
argument. The root is bound read-only: a baseline must not change what
sandboxes start from.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bare_buildah import BareBuildah
from bare_runsc import BareRunsc
from costs import Act, Costs, ms_of, serve

NODES = """
from concurrent.futures import ThreadPoolExecutor
from subprocess import check_output
with ThreadPoolExecutor(2) as two:
    list(two.map(lambda _: check_output(["node", "-v"]), range(100)))
"""
LOOP, PARALLEL, CREATES = 25, 5, 60
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


def make_bundle(folder: Path, rootfs: Path) -> None:
    """Write crun's example configuration for /bin/true in that root."""
    subprocess.run(["crun", "spec"], cwd=folder, check=True)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/true"]}
    config["root"] = {"path": str(rootfs), "readonly": True}
    path.write_text(json.dumps(config))


def run(argv: list[str]) -> None:
    """Run a program to its end.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-200:] or str(done.returncode))


def programs(folder: Path, rootfs: Path) -> dict[str, list[str]]:
    """What is timed from its start to its end."""
    inside = ["chroot", str(rootfs), "/usr/bin/env", "-i", f"PATH={USUAL_PATH}", "HOME=/tmp"]
    state, container = ["--root", str(folder / "state")], ["run", "--bundle", str(folder), "cloche-baseline"]
    own_world = ["--unshare-all", "--ro-bind", str(rootfs), "/", "--proc", "/proc", "--dev", "/dev"]
    return {
        "crun_true": ["crun", "--cgroup-manager=disabled", *state, *container],
        "runsc_true": ["runsc", "--network=none", "--ignore-cgroups", *state, *container],
        "bwrap_python": ["bwrap", *own_world, "python3", "-B", "-c", "pass"],
        "python_import": [*inside, "python3", "-B", "-c", "import IPython.core.interactiveshell, pandas"],
        "python_pass": [*inside, "python3", "-B", "-c", "pass"],
        "bash_echo": [*inside, "bash", "-l", "-c", "echo 1"],
        "node_version": [*inside, "node", "-v"],
        "nodes_100": [*inside, "python3", "-B", "-c", NODES],
    }


def acts_of(argv: dict[str, list[str]]) -> dict[str, Act]:
    """All baselines."""

    def once(name: str) -> Act:
        return lambda: {"ms": [ms_of(lambda: run(argv[name]))]}

    def bash_loop() -> Costs:
        each_ms = [ms_of(lambda: run(argv["bash_echo"])) for _ in range(LOOP)]
        with ThreadPoolExecutor(PARALLEL) as threads:
            parallel_ms = ms_of(lambda: list(threads.map(run, [argv["bash_echo"]] * PARALLEL)))
        return {"each": [statistics.median(each_ms)], "parallel": [parallel_ms]}

    def crun_loop() -> Costs:
        return {"ms": [ms_of(lambda: [run(argv["crun_true"]) for _ in range(CREATES)]) / CREATES]}

    return {name: once(name) for name in argv} | {"bash_loop": bash_loop, "crun_loop": crun_loop}


def main() -> None:
    """Answer until the input ends."""
    with tempfile.TemporaryDirectory(prefix="cloche-bench-") as name:
        folder = Path(name)
        rootfs = bind_read_only(sys.argv[1], folder)
        make_bundle(folder, rootfs)
        (folder / "runsc").mkdir()
        acts = acts_of(programs(folder, rootfs)) | BareRunsc(folder / "runsc", rootfs).acts()
        # On a disk, as the server's state is.
        with tempfile.TemporaryDirectory(prefix="cloche-bench-", dir="/var/tmp") as images:
            serve(acts | BareBuildah(Path(images), rootfs).acts())
        subprocess.run(["umount", "-l", str(rootfs)], check=False, capture_output=True)


main()
