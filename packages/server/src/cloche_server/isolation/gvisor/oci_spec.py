"""The OCI configuration of a sandbox, for runsc.

See: opencontainers/runtime-spec, config.md and config-linux.md.
"""

from __future__ import annotations

import json
from typing import Any

from cloche_server.isolation import mount_points, posture
from cloche_server.isolation.base import ID_RANGE, SandboxSpec, first_id
from cloche_server.isolation.gvisor import boot_id

_NOSUID_NODEV = ["nosuid", "nodev"]
_SHARED_MEMORY_MIB = 256
_HARD_OPEN_FILES = 20_480
"""What 4096 connections with three pipes each take. With 65,536, programs that close every descriptor they
might have, sudo among them, spend 0.8 s on it: each call is a way through the sentry."""


_NAMING = "CAP_SYS_ADMIN"
"""Of the first process alone, which gives the sandbox its name when it goes on from an image: sethostname(2)
takes that. What is started from there is not bound to have it, so no program has it, not root's either
(capabilities(7), transformation at execve), and who lacks it may not trace who has it (ptrace(2))."""


def write(spec: SandboxSpec) -> dict[str, Any]:
    """The configuration. Its paths are those of the mount namespace that `launcher` makes for runsc."""
    capabilities = [f"CAP_{name}" for name in posture.CAPABILITIES]
    ids = [{"containerID": 0, "hostID": first_id(spec.slot), "size": ID_RANGE}]
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": {"path": mount_points.ROOT, "readonly": False},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(spec.argv),
            "env": [f"{name}={value}" for name, value in spec.env.items()],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": [*capabilities, _NAMING],
                "permitted": [*capabilities, _NAMING],
            },
            "rlimits": [
                {
                    "type": "RLIMIT_NOFILE",
                    "hard": _HARD_OPEN_FILES,
                    "soft": posture.SOFT_OPEN_FILES,
                },
                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
                # Of each user; its kernel enforces it for all, since nobody in it may exceed resources.
                {"type": "RLIMIT_NPROC", "hard": spec.limits.pids, "soft": spec.limits.pids},
            ],
        },
        "mounts": [
            _mount("/proc", "proc"),
            _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            _mount("/dev", "tmpfs", "nosuid", "noexec", "mode=755", "size=64k"),
            _mount("/dev/pts", "devpts", "nosuid", "noexec"),
            _mount("/dev/shm", "tmpfs", *_NOSUID_NODEV, "mode=1777", f"size={_SHARED_MEMORY_MIB}m"),  # noqa: S108 - inside
            *(
                _mount(
                    shared.path, "bind", *_NOSUID_NODEV, "rbind", "rw", source=mount_points.shared_at(number)
                )
                for number, shared in enumerate(spec.mounts)
            ),
            _mount("/.cloche", "bind", *_NOSUID_NODEV, "rbind", "ro", source=mount_points.RUNTIME),
            *_boot_id(spec),
        ],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")),
                {"type": "network", "path": mount_points.NETWORK},
            ],
            "uidMappings": ids,
            "gidMappings": ids,
            "resources": {
                # What the sandbox is told that it has; enforced by the host's groups.
                "memory": {"limit": spec.limits.memory_mib << 20},
                "cpu": {"quota": spec.limits.cpu_count * 100_000, "period": 100_000},
            },
        },
    }


def shared_paths(written: bytes) -> list[str]:
    """Where a sandbox of a written configuration shows mounts that others have too."""
    mounts = json.loads(written)["mounts"]
    return [mount["destination"] for mount in mounts if mount["source"].startswith(f"{mount_points.SHARED}/")]


def _boot_id(spec: SandboxSpec) -> list[dict[str, Any]]:
    if not spec.boot_id:
        return []
    return [
        _mount(boot_id.PLACE, "bind", *_NOSUID_NODEV, "noexec", "bind", "ro", source=mount_points.BOOT_ID)
    ]


def _mount(destination: str, kind: str, *options: str, source: str | None = None) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source or kind, "options": list(options)}
