"""What of a volume a sandbox's programs have in use, by what its kernel says, and what its gofer has open."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloche_server.isolation.gvisor import open_files

SHARED = ["/mnt/data", "/d"]


def process(**values: Any) -> dict[str, Any]:
    return {"exe": "/bin/sh", "cwd": "/", "root": "/", "status": {"comm": "sh", "pid": 7}} | values


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"cwd": "/mnt/data/in"}, "/mnt/data/in"),
        ({"exe": "/d/program"}, "/d/program"),
        ({"root": "/d/root"}, "/d/root"),
        ({"fdlist": [{"number": 1, "path": "/dev/null"}, {"number": 3, "path": "/d/a b"}]}, "/d/a b"),
        ({"fdlist": [{"number": 3, "path": "/d/gone (deleted)"}]}, "/d/gone"),
        ({"maps": [{"pathname": ""}, {"pathname": "/mnt/data/mapped"}]}, "/mnt/data/mapped"),
        ({"root": "/mnt", "cwd": "/data/in"}, "/mnt/data/in"),
        ({"root": "/mnt", "fdlist": [{"path": "/mnt/data/outside"}]}, "/mnt/data/outside"),
    ],
)
def test_each_way_to_use_a_file_is_found_and_named(values: dict[str, Any], path: str) -> None:
    found = open_files.users([process(), process(**values)], SHARED)
    # The program of one in another root may be in it too: which root its name counts from is not said.
    assert [line for line in found if "bin/sh" not in line] == [f"{path} by sh (pid 7)"]


@pytest.mark.parametrize(
    "values",
    [
        {"cwd": "/mnt/data", "fdlist": [{"path": "/d"}]},
        {"root": "/d", "exe": "", "cwd": "/"},
        {"cwd": "/mnt/database", "exe": "/dd/x", "fdlist": [{"path": "/home/d/x"}, {"path": "pipe:[3]"}]},
        {"fdlist": None, "maps": [3, "/d/x"], "cwd": None, "exe": ["/d/x"]},
    ],
)
def test_roots_of_volumes_and_what_only_looks_alike_may_be_in_use(values: dict[str, Any]) -> None:
    assert open_files.users([process(**values)], SHARED) == []


def test_one_file_of_one_program_is_told_once_and_many_are_counted() -> None:
    twice = process(fdlist=[{"path": "/d/x"}] * 2, maps=[{"pathname": "/d/x"}])
    assert open_files.users([twice], SHARED) == ["/d/x by sh (pid 7)"]
    many = process(fdlist=[{"path": f"/d/{number}"} for number in range(9)], status={})
    found = open_files.users([many], SHARED)
    assert len(found) == 9
    assert found[0].startswith("/d/0 by a program")
    assert open_files.told(found).endswith(" and 6 more")
    assert open_files.told(found[:3]) == ", ".join(found[:3])


@pytest.mark.parametrize("dump", [None, [], {}, "[]", [None, 1]])
def test_kernel_that_names_no_program_is_not_believed(dump: object) -> None:
    with pytest.raises(ValueError, match="does not say"):
        open_files.users(dump, SHARED)


def test_what_a_gofer_has_open_is_told_with_its_kind_and_without_what_is_gone(tmp_path: Path) -> None:
    """Only of a process of that name, and only below the mounts."""
    (tmp_path / "folder").mkdir()
    for name in ("file", "gone"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("file")
    program = (
        "import os,sys; "
        "[os.open(os.path.join(sys.argv[1], name), os.O_PATH | os.O_NOFOLLOW)"
        " for name in ('', 'folder', 'file', 'link', 'gone')]; "
        "os.unlink(os.path.join(sys.argv[1], 'gone')); print(flush=True); sys.stdin.read()"
    )
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("runsc-gofer", "another"):
            (tmp_path / "gone").touch()
            argv = [name, "-c", program, str(tmp_path)]
            one = subprocess.Popen(
                argv, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            started.append(one)
            assert one.stdout is not None
            assert one.stdout.readline() == b"\n"
        gofer, another = (one.pid for one in started)
        expected = [f"{tmp_path}/{name}" for name in ("file", "folder/", "link")]
        assert open_files.kept({gofer, another, os.getpid()}, [str(tmp_path)]) == expected
        assert open_files.kept({gofer}, ["/other"]) == []
        assert open_files.kept({another}, [str(tmp_path)]) == []
    finally:
        for one in started:
            one.communicate()
    assert open_files.kept({one.pid for one in started}, [str(tmp_path)]) == []
