"""Tries what the `container` driver and volumes ask of the kernel; prints JSON.

`python -m cloche_server.cli.probes [NAME ...]`, run by `checks` as root in mount, network and pid namespaces
of its own, so that nothing of it outlives the process. What a probe raises is why the machine cannot do it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from cloche_server.isolation import cgroups, loop_image, mount_points, syscalls
from cloche_server.isolation import overlay as overlay_mounts
from cloche_server.isolation.container import call_filter
from cloche_server.isolation.container import seccomp as seccomp_profile

_PROBE_ID = 0x1000_0000
_IDS = 65_536
_RULES = "table inet probe { chain c { type nat hook postrouting priority srcnat; masquerade; }; }"


def user_namespaces() -> str:
    """Make a user namespace with 65,536 ids."""
    os.close(syscalls.user_namespace([(0, _PROBE_ID, _IDS)]))
    return f"{_IDS} ids"


def overlay() -> str:
    """Mount an overlay."""
    with tempfile.TemporaryDirectory() as folder:
        syscalls.mount("tmpfs", folder, "tmpfs", syscalls.MS_NODEV)
        _overlay(Path(folder), str(_made(Path(folder) / "lower")))
        syscalls.unmount(folder, syscalls.MNT_DETACH)
    return os.uname().release


def idmapped_mounts() -> str:
    """Mount layers with shifted ids as one root, where temporary files lie, and write to it."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        layer, root = _made(base / "layer"), _made(base / "root")
        overlay_mounts.make_writable(base)
        mount_points.prepare()
        namespace = syscalls.user_namespace([(0, _PROBE_ID, _IDS)])
        ids = overlay_mounts.Ids(namespace, _PROBE_ID)
        try:
            overlay_mounts.mount([str(layer)], str(base), str(root), ids, syscalls.MS_NODEV)
            with overlay_mounts.acting_as(ids):
                _made(root / "folder")
        finally:
            os.close(namespace)
        os.chdir("/")
        syscalls.unmount(str(root), syscalls.MNT_DETACH)
        syscalls.unmount(mount_points.LAYERS, syscalls.MNT_DETACH)
        if (base / overlay_mounts.UPPER / "folder").stat().st_uid != 0:
            raise OSError("files that a sandbox writes have its ids on disk")
    return os.uname().release


def cgroup_controllers() -> str:
    """Find memory, pids and cpu controllers, and make a group."""
    hierarchy = cgroups.detect(Path("/proc/self/mountinfo").read_text())
    folder = hierarchy.folders(f"cloche-probe-{os.getpid()}")[0]
    folder.mkdir()
    folder.rmdir()
    version = "2" if isinstance(hierarchy, cgroups.VersionTwo) else "1"
    return f"version {version}: {', '.join(cgroups.CONTROLLERS)}"


def veth() -> str:
    """Make a pair of network interfaces."""
    _command("ip", "link", "add", "probe0", "type", "veth", "peer", "name", "probe1")
    return "pairs can be made"


def nft_nat() -> str:
    """Load a rule set with address translation."""
    _command("nft", _RULES)
    return "masquerading works"


def seccomp() -> str:
    """Find seccomp filters, and make the sandboxes' one."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    if "errno" not in actions:
        raise OSError("no filters in this kernel")
    instructions = (
        len(call_filter.compile_profile(seccomp_profile.profile())) // call_filter.INSTRUCTION_BYTES
    )
    return f"filters; {instructions} instructions"


def volumes() -> str:
    """Make a small file system in a file and mount it through a loop device, which goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        loop_image.make(image, 8 << 20, 64, preallocate=False)
        os.close(loop_image.mount(image))
    return "loop devices and mkfs.ext4"


PROBES: dict[str, Callable[[], str]] = {
    "user_namespaces": user_namespaces,
    "overlay": overlay,
    "idmapped_mounts": idmapped_mounts,
    "cgroup_controllers": cgroup_controllers,
    "veth": veth,
    "nft_nat": nft_nat,
    "seccomp": seccomp,
    "volumes": volumes,
}


def main() -> None:
    """Run the named probes, or all, and print `{name: [ok, detail]}`."""
    found: dict[str, tuple[bool, str]] = {}
    for name in sys.argv[1:] or PROBES:
        try:
            found[name] = (True, PROBES[name]())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason to show
            found[name] = (False, str(error))
    json.dump(found, sys.stdout)


def _overlay(base: Path, lower: str) -> None:
    upper, work, merged = (_made(base / name) for name in ("upper", "work", "merged"))
    syscalls.mount("overlay", str(merged), "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _command(*argv: str) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise OSError(result.stderr.strip().splitlines()[0] if result.stderr.strip() else f"{argv[0]} failed")


if __name__ == "__main__":
    main()
