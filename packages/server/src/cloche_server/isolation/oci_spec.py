"""The OCI bundle of a sandbox: one writer for every OCI runtime we drive.

See: opencontainers/runtime-spec, config.md and config-linux.md.
"""

from __future__ import annotations

import resource
from typing import Any

from cloche_server.isolation.base import ID_RANGE, SandboxSpec

CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETUID", "SETGID", "SETPCAP", "SETFCAP", "KILL",
        "NET_BIND_SERVICE", "SYS_CHROOT",
    )
)  # fmt: skip
"""Docker's default without NET_RAW, MKNOD and AUDIT_WRITE.

Apt, pip, npm, useradd, su and sudo work with these.
"""

MASKED_PATHS = tuple(
    f"/proc/{name}"
    for name in (
        "acpi", "asound", "bus", "config.gz", "diskstats", "fs", "interrupts",
        "iomem", "ioports", "irq", "kallsyms",
        "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount",
        "kpageflags", "latency_stats", "mdstat",
        "modules", "partitions", "sched_debug", "scsi", "slabinfo", "softirqs",
        "swaps", "sysrq-trigger", "timer_list",
        "timer_stats", "tty", "vmallocinfo",
    )
)  # fmt: skip
"""Host state that procfs shows to every namespace.

crun covers files with /dev/null and folders with an empty tmpfs.
"""

READONLY_PATHS = ("/proc/sys",)
HARD_OPEN_FILES = 65_536


def build(
    spec: SandboxSpec, *, root: str, runtime_tree: str, network: str, first_id: int, seccomp: object
) -> dict[str, Any]:
    """Return config.json.

    Args:
        spec: What to start.
        root: The assembled root, as the runtime sees it.
        runtime_tree: The runtime tree, as the runtime sees it.
        network: Path of the network namespace to join.
        first_id: Host id of the sandbox's root.
        seccomp: The `linux.seccomp` object.
    """
    return {
        "ociVersion": "1.0.2",
        "process": _process(spec),
        "root": {"path": root, "readonly": False},
        "hostname": spec.hostname,
        "mounts": _mounts(runtime_tree),
        "linux": {
            "uidMappings": [{"containerID": 0, "hostID": first_id, "size": ID_RANGE}],
            "gidMappings": [{"containerID": 0, "hostID": first_id, "size": ID_RANGE}],
            "namespaces": [
                *({"type": kind} for kind in ("user", "pid", "mount", "ipc", "uts", "cgroup")),
                {"type": "network", "path": network},
            ],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "rootfsPropagation": "private",
            "seccomp": seccomp,
        },
    }


def _process(spec: SandboxSpec) -> dict[str, Any]:
    # Never above what we inherited: without CAP_SYS_RESOURCE a raise is refused (setrlimit(2)).
    hard = min(HARD_OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": list(spec.argv),
        "env": [f"{name}={value}" for name, value in spec.env.items()],
        "cwd": "/",
        # sudo has to work for `user`: the filter is loaded and the bounding set cut before the first tenant
        # instruction, so a setuid program gains nothing but an id of this sandbox's own namespace.
        "noNewPrivileges": False,
        "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": min(1024, hard), "hard": hard},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    }


def _mounts(runtime_tree: str) -> list[dict[str, Any]]:
    def mount(destination: str, kind: str, *options: str, source: str | None = None) -> dict[str, Any]:
        return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}

    return [
        mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        mount("/dev", "tmpfs", "nosuid", "noexec", "mode=755", "size=64k", "nr_inodes=64"),
        mount(
            "/dev/pts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
            "max=256",
        ),
        mount("/dev/shm", "tmpfs", "nosuid", "nodev", "mode=1777", "size=262144k", "nr_inodes=65536"),  # noqa: S108 - inside
        mount("/.cloche", "bind", "bind", "ro", "nosuid", "nodev", source=runtime_tree),
    ]
