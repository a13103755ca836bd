"""Control groups on folder trees that look like the kernel's."""

import errno
from pathlib import Path

import pytest

from cloche_server.isolation import cgroups
from cloche_server.isolation.base import ResourceLimits
from cloche_wire.errors import Internal, Unavailable

pytestmark = pytest.mark.anyio

LIMITS = ResourceLimits(cpu_count=2, memory_mib=64, pids=100)
ID = "i" + "a" * 20

SPLIT = """\
30 23 0:26 / {root} ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / {root}/unified rw - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / {root}/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / {root}/memory rw shared:10 - cgroup cgroup rw,memory
34 30 0:30 / {root}/pids rw shared:11 - cgroup cgroup rw,pids
35 30 0:31 / {root}/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
UNIFIED = "30 23 0:26 / {root} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


@pytest.fixture
def split(tmp_path: Path) -> cgroups.Hierarchy:
    for name in ("unified", "cpu,cpuacct", "memory", "pids", "systemd"):
        (tmp_path / name).mkdir()
    return cgroups.detect(SPLIT.format(root=tmp_path))


@pytest.fixture
def unified(tmp_path: Path) -> cgroups.Hierarchy:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    return cgroups.detect(UNIFIED.format(root=tmp_path))


def test_hybrid_layout_is_used_by_its_controllers(split: cgroups.Hierarchy, tmp_path: Path) -> None:
    assert isinstance(split, cgroups.VersionOne)
    assert set(split.folders("g")) == {tmp_path / "memory/g", tmp_path / "pids/g", tmp_path / "cpu,cpuacct/g"}


def test_shared_hierarchy_is_named_once(split: cgroups.Hierarchy) -> None:
    assert len(split.folders("g")) == 3


def test_pure_second_version_is_used(unified: cgroups.Hierarchy, tmp_path: Path) -> None:
    assert isinstance(unified, cgroups.VersionTwo)
    assert unified.folders("g") == [tmp_path / "g"]


def test_missing_controller_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    with pytest.raises(Unavailable, match="missing: pids"):
        cgroups.detect(UNIFIED.format(root=tmp_path))
    with pytest.raises(Unavailable, match="memory, pids, cpu"):
        cgroups.detect("22 1 0:5 / / rw - ext4 /dev/vda rw\n")


def test_second_version_hands_its_controllers_down(unified: cgroups.Hierarchy, tmp_path: Path) -> None:
    cgroups.SandboxGroups(unified, "cloche-0").prepare()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (tmp_path / "cloche-0" / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_limits_of_the_first_version_stand_when_the_files_to_enter_are_given(
    split: cgroups.Hierarchy, tmp_path: Path
) -> None:
    groups = cgroups.SandboxGroups(split, "cloche-0")
    groups.prepare()
    files = groups.create(ID, LIMITS)
    assert {path.name for path in files} == {"cgroup.procs"}
    assert len(files) == 3
    group = f"cloche-0/{ID}"
    assert (tmp_path / "memory" / group / "memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (tmp_path / "pids" / group / "pids.max").read_text() == "100"
    assert (tmp_path / "cpu,cpuacct" / group / "cpu.cfs_quota_us").read_text() == "200000"
    assert (tmp_path / "cpu,cpuacct" / group / "cpu.cfs_period_us").read_text() == "100000"
    assert not (tmp_path / "memory" / group / "memory.memsw.limit_in_bytes").exists()
    assert not any(path.exists() for path in files)  # nobody was moved yet


@pytest.mark.parametrize("missing", [{"memory", "pids", "cpu,cpuacct"}, {"pids"}])
def test_parent_that_somebody_has_removed_is_made_again(
    split: cgroups.Hierarchy, tmp_path: Path, missing: set[str]
) -> None:
    """Empty groups are what tidies of a machine remove."""
    groups = cgroups.SandboxGroups(split, "cloche-0")
    groups.prepare()
    for name in missing:
        (tmp_path / name / "cloche-0").rmdir()
    groups.create(ID, LIMITS)
    assert (tmp_path / "memory" / "cloche-0" / ID / "memory.limit_in_bytes").exists()
    assert (tmp_path / "pids" / "cloche-0" / ID / "pids.max").exists()


def test_limits_of_the_second_version(unified: cgroups.Hierarchy, tmp_path: Path) -> None:
    groups = cgroups.SandboxGroups(unified, "cloche-0")
    groups.prepare()
    assert groups.create(ID, LIMITS) == [tmp_path / "cloche-0" / ID / "cgroup.procs"]
    folder = tmp_path / "cloche-0" / ID
    assert (folder / "memory.max").read_text() == str(64 << 20)
    assert (folder / "cpu.max").read_text() == "200000 100000"
    assert (folder / "pids.max").read_text() == "100"


def test_swap_is_limited_where_the_kernel_counts_it(split: cgroups.Hierarchy, tmp_path: Path) -> None:
    group = tmp_path / "memory" / "g"
    for path in split.folders("g"):
        path.mkdir()
    (group / "memory.memsw.limit_in_bytes").write_text("max")
    split.limit("g", LIMITS)
    assert (group / "memory.memsw.limit_in_bytes").read_text() == str(64 << 20)


def test_limit_that_cannot_be_written_is_an_error_that_names_the_file(
    split: cgroups.Hierarchy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: str) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    groups = cgroups.SandboxGroups(split, "cloche-0")
    groups.prepare()
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(Internal, match=r"memory\.limit_in_bytes: Invalid argument"):
        groups.create(ID, LIMITS)


async def test_removal_is_idempotent_and_names_go_with_it(unified: cgroups.Hierarchy, tmp_path: Path) -> None:
    groups = cgroups.SandboxGroups(unified, "cloche-0")
    (tmp_path / "cloche-0" / ID).mkdir(parents=True)
    assert groups.names() == {ID}
    await groups.remove(ID)
    await groups.remove(ID)
    assert groups.names() == set()


async def test_half_made_group_is_removed(split: cgroups.Hierarchy, tmp_path: Path) -> None:
    groups = cgroups.SandboxGroups(split, "cloche-0")
    (tmp_path / "pids" / "cloche-0" / ID).mkdir(parents=True)
    assert groups.names() == {ID}
    await groups.remove(ID)
    assert groups.names() == set()


async def test_busy_group_is_tried_again(
    unified: cgroups.Hierarchy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Path] = []
    real = Path.rmdir

    def busy_twice(path: Path) -> None:
        attempts.append(path)
        if len(attempts) < 3:
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path)

    groups = cgroups.SandboxGroups(unified, "cloche-0")
    (tmp_path / "cloche-0" / ID).mkdir(parents=True)
    monkeypatch.setattr(Path, "rmdir", busy_twice)
    await groups.remove(ID)
    assert len(attempts) == 3


async def test_group_that_cannot_be_removed_is_an_error(
    unified: cgroups.Hierarchy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    groups = cgroups.SandboxGroups(unified, "cloche-0")
    (tmp_path / "cloche-0" / ID).mkdir(parents=True)
    monkeypatch.setattr(Path, "rmdir", refuse)
    with pytest.raises(Internal, match="cannot remove the control group"):
        await groups.remove(ID)


def test_parent_stays_while_a_sandbox_is_left(unified: cgroups.Hierarchy, tmp_path: Path) -> None:
    groups = cgroups.SandboxGroups(unified, "cloche-0")
    (tmp_path / "cloche-0" / ID).mkdir(parents=True)
    groups.remove_parent()
    assert (tmp_path / "cloche-0" / ID).exists()
    (tmp_path / "cloche-0" / ID).rmdir()
    groups.remove_parent()
    assert not (tmp_path / "cloche-0").exists()


def test_usage_is_read_from_either_version(split: cgroups.Hierarchy, tmp_path: Path) -> None:
    for name, file, value in (
        ("memory", "memory.usage_in_bytes", "4096"),
        ("cpu,cpuacct", "cpuacct.usage", "2500000000"),
        ("pids", "pids.current", "7"),
    ):
        folder = tmp_path / name / "cloche-0" / ID
        folder.mkdir(parents=True)
        (folder / file).write_text(f"{value}\n")
    stat = tmp_path / "memory" / "cloche-0" / ID / "memory.stat"
    stat.write_text("inactive_file 5\ntotal_cache 2000\ntotal_inactive_file 1000\ntotal_active_file 24\n")
    assert cgroups.SandboxGroups(split, "cloche-0").usage(ID) == (4096, 2.5, 7, 1024)


def test_usage_of_the_second_version_finds_its_field(unified: cgroups.Hierarchy, tmp_path: Path) -> None:
    folder = tmp_path / "cloche-0" / ID
    folder.mkdir(parents=True)
    (folder / "memory.current").write_text("4096\n")
    (folder / "pids.current").write_text("7\n")
    (folder / "cpu.stat").write_text("user_usec 1\nusage_usec 1500000\nsystem_usec 2\n")
    (folder / "memory.stat").write_text(
        "anon 3072\nkernel_file 5\nfile 2000\ninactive_file 1000\nactive_file 24\n"
    )
    assert cgroups.SandboxGroups(unified, "cloche-0").usage(ID) == (4096, 1.5, 7, 1024)


@pytest.mark.parametrize("version", ["split", "unified"])
def test_usage_of_a_sandbox_that_is_gone_is_zero(version: str, request: pytest.FixtureRequest) -> None:
    hierarchy: cgroups.Hierarchy = request.getfixturevalue(version)
    assert cgroups.SandboxGroups(hierarchy, "cloche-0").usage(ID) == (0, 0.0, 0, 0)


def test_processes_are_collected_over_all_hierarchies(split: cgroups.Hierarchy, tmp_path: Path) -> None:
    for name, pids in (("memory", "11\n12\n"), ("pids", "12\n13\n")):
        folder = tmp_path / name / "cloche-0" / ID
        folder.mkdir(parents=True)
        (folder / "cgroup.procs").write_text(pids)
    assert cgroups.SandboxGroups(split, "cloche-0").pids(ID) == {11, 12, 13}


# --- standing still


@pytest.fixture
def freezing(tmp_path: Path) -> cgroups.SandboxGroups:
    """Groups of the first version on a machine with the freezer hierarchy; the kernel's files are there."""
    for name in ("unified", "cpu,cpuacct", "memory", "pids", "systemd", "freezer"):
        (tmp_path / name).mkdir()
    mounts = SPLIT + "36 30 0:32 / {root}/freezer rw - cgroup cgroup rw,freezer\n"
    groups = cgroups.SandboxGroups(cgroups.detect(mounts.format(root=tmp_path)), "cloche-0")
    groups.prepare()
    groups.create(ID, LIMITS)
    return groups


def kernel_that_answers(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[str]]) -> list[str]:
    """Have files answer as the kernel would, one answer after the other; what was written to them."""
    written: list[str] = []
    real = Path.write_text

    def write(path: Path, value: str) -> int:
        written.append(f"{path.name}={value}")
        return real(path, value)

    def content(path: Path) -> bytes:
        found = answers[path.name]
        return (found.pop(0) if len(found) > 1 else found[0]).encode()

    monkeypatch.setattr(Path, "write_text", write)
    monkeypatch.setattr(cgroups, "_content", content)
    return written


async def test_group_of_the_first_version_is_frozen_once_the_kernel_says_so(
    freezing: cgroups.SandboxGroups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert freezing.freezes
    assert (tmp_path / "freezer" / "cloche-0" / ID).is_dir()
    answers = {"freezer.state": ["FREEZING\n", "FREEZING\n", "FROZEN\n"]}
    written = kernel_that_answers(monkeypatch, answers)
    await freezing.freeze(ID)
    assert answers == {"freezer.state": ["FROZEN\n"]}
    freezing.thaw(ID)
    assert written == ["freezer.state=FROZEN", "freezer.state=THAWED"]


async def test_group_of_the_second_version_is_frozen_once_the_kernel_says_so(
    unified: cgroups.Hierarchy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = cgroups.SandboxGroups(unified, "cloche-0")
    (tmp_path / "cloche-0" / ID).mkdir(parents=True)
    written = kernel_that_answers(
        monkeypatch, {"cgroup.events": ["populated 1\nfrozen 0\n", "populated 1\nfrozen 1\n"]}
    )
    await groups.freeze(ID)
    groups.thaw(ID)
    assert written == ["cgroup.freeze=1", "cgroup.freeze=0"]


async def test_what_does_not_stand_still_goes_on_and_is_told(
    freezing: cgroups.SandboxGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_FREEZE_ATTEMPTS", 2)
    written = kernel_that_answers(monkeypatch, {"freezer.state": ["FREEZING\n"]})
    with pytest.raises(Internal, match="does not stand still"):
        await freezing.freeze(ID)
    assert written[-1] == "freezer.state=THAWED"


async def test_group_that_is_gone_cannot_be_frozen_and_needs_no_thawing(
    freezing: cgroups.SandboxGroups,
) -> None:
    gone = "i" + "b" * 20
    with pytest.raises(Internal, match=r"freezer\.state"):
        await freezing.freeze(gone)
    freezing.thaw(gone)


def test_machine_without_the_freezer_says_so_and_ends_sandboxes_all_the_same(
    split: cgroups.Hierarchy,
) -> None:
    groups = cgroups.SandboxGroups(split, "cloche-0")
    assert not groups.freezes
    groups.thaw(ID)


def test_memory_is_asked_back_as_each_version_has_it(
    freezing: cgroups.SandboxGroups, unified: cgroups.Hierarchy, tmp_path: Path
) -> None:
    freezing.reclaim(ID)
    assert (tmp_path / "memory" / "cloche-0" / ID / "memory.force_empty").read_text() == "0"
    folder = tmp_path / "cloche-0" / ID
    folder.mkdir(parents=True)
    (folder / "memory.stat").write_text("anon 3072\nfile 2000\ninactive_file 1024\n")
    cgroups.SandboxGroups(unified, "cloche-0").reclaim(ID)
    assert (folder / "memory.reclaim").read_text() == "1024"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EBUSY])
def test_memory_that_the_kernel_keeps_is_no_failure(
    unified: cgroups.Hierarchy, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path, value: str) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(Path, "write_text", refuse)
    cgroups.SandboxGroups(unified, "cloche-0").reclaim(ID)
