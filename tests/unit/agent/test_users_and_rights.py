"""Who the users of the sandbox are, and that the kernel keeps each of them to their own rights."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cloche_agent import users
from cloche_agent.credentials import acting_as
from cloche_agent.filesystem.paths import resolve
from cloche_agent.users import User
from cloche_wire.errors import PermissionDenied, Unauthenticated

SAYS = "os.getresuid(), os.getresgid(), os.getgroups(), os.getcwd(), resource.getrlimit(7), os.umask(0o77)"
NOBODY = User("nobody", 65534, 65534, "/", "/bin/sh", (65534,))
ANN = User("ann", 1000, 1000, "/home/ann", "/bin/sh", (1000,))


@pytest.fixture
def passwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "passwd"
    path.write_text(
        "root:x:0:0::/root:/bin/bash\nann:x:1000:1000::/home/ann:\nodd line\nann:x:7:7::/:/bin/sh\n"
    )
    (tmp_path / "group").write_text("root:x:0:\nann:x:1000:\nwheel:x:10:root,ann\nbad:x:y:ann\n")
    monkeypatch.setattr(users, "_PASSWD", str(path))
    monkeypatch.setattr(users, "_GROUP", str(tmp_path / "group"))
    return path


@pytest.mark.usefixtures("passwd")
def test_user_comes_with_home_and_groups() -> None:
    assert users.lookup("ann") == User("ann", 1000, 1000, "/home/ann", "/bin/sh", (10, 1000))
    assert (users.user_name(1000), users.user_name(77), users.group_name(10)) == ("ann", "77", "wheel")


@pytest.mark.usefixtures("passwd")
@pytest.mark.parametrize("name", ["", "eve", "odd line", "1000", "a:b"])
def test_unknown_user_is_refused(name: str) -> None:
    with pytest.raises(Unauthenticated, match=f"invalid username: '{name}'"):
        users.lookup(name)


def test_new_user_is_seen_at_once_and_a_fifo_is_not_waited_for(passwd: Path) -> None:
    assert users.lookup("ann").uid == 1000
    passwd.write_text("eve:x:5:5::/home/eve:/bin/sh\n")
    assert users.lookup("eve").uid == 5
    passwd.unlink()
    os.mkfifo(passwd)
    with pytest.raises(Unauthenticated):
        users.lookup("eve")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/work"),
        ("~", "/home/ann"),
        ("~/x", "/home/ann/x"),
        ("x/./y//z", "/home/ann/x/y/z"),
        ("../../../etc", "/etc"),
        ("//etc/x/", "/etc/x"),
        ("/", "/"),
    ],
)
def test_paths_are_resolved_as_e2b_does(path: str, expected: str) -> None:
    assert resolve(path, ANN, "/work") == expected


@pytest.mark.needs("root")
def test_write_through_a_link_into_a_folder_of_root_is_refused(tmp_path: Path) -> None:
    """The kernel says no, although this process is root, and root is root again afterwards."""
    guarded = tmp_path / "guarded"
    guarded.mkdir(mode=0o755)
    (guarded / "file").write_text("root's")
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o711)
    with acting_as(NOBODY):
        (open_to_all / "link").symlink_to(guarded)
        for attempt in (
            lambda: (open_to_all / "link" / "new").write_text("x"),
            lambda: (open_to_all / "link" / "file").write_text("x"),
            lambda: (open_to_all / "link" / "file").unlink(),
            lambda: (open_to_all / "link").chmod(0o777),
            lambda: secret.read_text(),
            lambda: os.chown(open_to_all, 65534, 65534),
            lambda: Path("/proc/self/environ").read_bytes(),
        ):
            with pytest.raises(PermissionError):
                attempt()
        (open_to_all / "mine").write_text("x")
    assert (open_to_all / "mine").stat().st_uid == 65534
    assert secret.read_text() == "root's"
    assert (guarded / "file").read_text() == "root's"


@pytest.mark.needs("root")
def test_supplementary_groups_count_and_are_given_back(tmp_path: Path) -> None:
    before = os.getgroups()
    with acting_as(User("x", 4321, 4321, "/", "/bin/sh", (4321, 8765))):
        assert sorted(os.getgroups()) == [4321, 8765]
    assert os.getgroups() == before
    with pytest.raises(KeyError), acting_as(NOBODY):
        raise KeyError
    (tmp_path / "mine").touch()
    assert (tmp_path / "mine").stat().st_uid == 0


@pytest.mark.needs("root")
@pytest.mark.parametrize("has_terminal", [False, True])
def test_a_program_has_its_user_for_good_and_its_starter_is_as_before(has_terminal: bool) -> None:
    """All ids, groups and limits are the child's alone, also where it cannot be started."""
    starter = f"""
import os, resource
terminal = os.openpty()[1] if {has_terminal} else None
from cloche_agent.process.spawn import SpawnRequest, spawn
for program in ("python3", "no-such-program"):
    before = {SAYS}
    argv = [program, "-c", "import os, resource; print({SAYS})"]
    try:
        path, groups = {{"PATH": "/usr/bin"}}, (4321, 8765)
        asked = SpawnRequest(
            argv, path, "/usr", 4321, 4321, groups, stdin=terminal, stdout=1, controlling_tty={has_terminal}
        )
        os.waitpid(spawn(asked), 0)
    except Exception as error:
        print(error)
    assert ({SAYS}) == before[:-1] + (0o77,)
"""
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True)
    limit = 1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    said = ((4321,) * 3, (4321,) * 3, [4321, 8765], "/usr", limit, 0o022)
    assert done.stdout.splitlines() == [
        " ".join(map(str, said)),
        "cannot execute 'no-such-program': no such file or directory",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="as root it may")
def test_ordinary_process_acts_as_nobody_else() -> None:
    with pytest.raises(PermissionDenied), acting_as(User("x", os.geteuid() + 1, 0, "/", "/bin/sh", ())):
        pass
