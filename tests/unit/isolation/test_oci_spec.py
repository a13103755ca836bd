"""config.json of a sandbox, field by field where a wrong one would open a door."""

import resource
from pathlib import Path
from typing import Any

import pytest

from cloche_server.isolation import oci_spec
from cloche_server.isolation.base import ID_RANGE, ResourceLimits, SandboxSpec, first_id

ELEVEN = {
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP",
    "CAP_SETFCAP", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT",
}  # fmt: skip


def built(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "sandbox_id": "i" + "a" * 20,
        "slot": 3,
        "hostname": "iaaa",
        "rootfs": Path("/templates/b/rootfs"),
        "folder": Path("/state/sandboxes/iaaa"),
        "runtime_tree": Path("/state/runtime/h"),
        "limits": ResourceLimits(2, 512, 100),
        "network_namespace": 9,
        "listeners": (10, 11),
        "argv": ("/.cloche/bin/python3", "agent"),
        "env": {"PATH": "/bin", "LANG": "C.UTF-8"},
        "etc_files": {"hosts": "127.0.0.1 localhost\n"},
    }
    spec = SandboxSpec(**(fields | changes))
    return oci_spec.build(
        spec,
        root="/run/cloche/root",
        runtime_tree="/run/cloche/runtime",
        network="/proc/self/fd/5",
        first_id=first_id(3),
        seccomp={"defaultAction": "SCMP_ACT_ERRNO"},
    )


def test_root_has_the_eleven_capabilities_and_none_to_inherit() -> None:
    capabilities = built()["process"]["capabilities"]
    assert set(capabilities) == {"bounding", "effective", "permitted"}
    for kind in capabilities.values():
        assert set(kind) == ELEVEN


def test_sudo_can_work() -> None:
    assert built()["process"]["noNewPrivileges"] is False


def test_every_namespace_is_its_own_and_the_network_is_the_given_one() -> None:
    namespaces = {entry["type"]: entry.get("path") for entry in built()["linux"]["namespaces"]}
    assert namespaces == {
        **dict.fromkeys(("user", "pid", "mount", "ipc", "uts", "cgroup")),
        "network": "/proc/self/fd/5",
    }


def test_ids_are_mapped_to_the_range_of_the_slot() -> None:
    linux = built()["linux"]
    expected = [{"containerID": 0, "hostID": 0x1000_0000 + 3 * ID_RANGE, "size": 65_536}]
    assert linux["uidMappings"] == linux["gidMappings"] == expected


def test_ranges_of_neighbouring_slots_do_not_touch() -> None:
    assert first_id(1) - first_id(0) == ID_RANGE
    assert first_id(54 * 512 - 1) + ID_RANGE <= 2**31


def test_host_state_in_proc_is_covered() -> None:
    linux = built()["linux"]
    for name in ("kcore", "keys", "kallsyms", "sysrq-trigger", "timer_list", "scsi", "acpi", "fs"):
        assert f"/proc/{name}" in linux["maskedPaths"]
    assert linux["readonlyPaths"] == ["/proc/sys"]


@pytest.mark.parametrize(
    ("inherited", "soft", "hard"), [(512, 512, 512), (4096, 1024, 4096), (10**6, 1024, 65_536)]
)
def test_limits_are_never_raised_above_the_inherited_ones(
    monkeypatch: pytest.MonkeyPatch, inherited: int, soft: int, hard: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, inherited))
    rlimits = {entry["type"]: entry for entry in built()["process"]["rlimits"]}
    assert rlimits["RLIMIT_NOFILE"] == {"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}
    assert rlimits["RLIMIT_CORE"]["hard"] == 0


def test_runtime_tree_is_shown_read_only() -> None:
    mounts = {entry["destination"]: entry for entry in built()["mounts"]}
    assert {"ro", "nosuid", "nodev"} <= set(mounts["/.cloche"]["options"])
    assert mounts["/.cloche"]["source"] == "/run/cloche/runtime"


def test_no_path_of_the_state_folder_is_in_it() -> None:
    text = str(built())
    assert "/state/" not in text
    assert "/templates/" not in text


def test_no_device_and_no_sysfs_of_the_host_is_mounted() -> None:
    mounts = built()["mounts"]
    assert {entry["type"] for entry in mounts} == {"proc", "tmpfs", "devpts", "bind"}
    assert [entry["destination"] for entry in mounts if entry["type"] == "bind"] == ["/.cloche"]
