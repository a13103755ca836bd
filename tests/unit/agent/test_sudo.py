"""`sudo` by way of the agent: who may, what the program gets, and what hostile requests come to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support.waiting import until

from cloche_agent import sudo, sudo_client
from cloche_agent.process.spawn import Reaper

NEEDS_ROOT = pytest.mark.needs("root")
DEADLINE_S = 20
CALLER = "daemon"
"""A user of every machine; no account is made for a test."""
EVERYTHING = "Defaults:\n    env_reset\n\nUser may:\n    (ALL : ALL) NOPASSWD: ALL\n"

REAL = """#!/bin/sh
if [ "$1 $2 $3" = "-n -l -U" ]; then exec cat "$(dirname "$0")/rights of $4"; fi
while :; do case "$1" in *=*) export "$1"; shift ;; *) exec "$@" ;; esac; done
"""

SERVE = """
import asyncio, json, sys
from pathlib import Path
from cloche_agent import sudo
from cloche_agent.process.spawn import Reaper
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, value in settings.items():
    setattr(sudo, name, value)
async def main():
    reaper = Reaper()
    reaper.install()
    await sudo.SudoService(reaper, sudo.Places([], "", folder=folder, socket=folder / "socket")).run()
asyncio.run(main())
"""

BE_CLIENT = """
import os, sys
from cloche_agent import sudo_client
sudo_client.FOLDER = sys.argv[1]
sudo_client.SOCKET = sys.argv[1] + "/socket"
uid, gid = int(sys.argv[2]), int(sys.argv[3])
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
sys.argv[1:] = sys.argv[4:]
sudo_client.main()
"""


class Service(NamedTuple):
    folder: Path
    pid: int

    def allow(self, listed: str, name: str = CALLER) -> None:
        (self.folder / f"rights of {name}").write_text(listed)

    def argv(self, *arguments: str, name: str = CALLER) -> list[str]:
        user = pwd.getpwnam(name)
        ids = [str(user.pw_uid), str(user.pw_gid)]
        return [sys.executable, "-c", BE_CLIENT, str(self.folder), *ids, "/usr/bin/sudo", *arguments]

    def run(self, *arguments: str, name: str = CALLER, **options: Any) -> subprocess.CompletedProcess[str]:
        argv = self.argv(*arguments, name=name)
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False, **options
        )

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208


def _listens(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(folder / "socket")) == 0


@contextlib.contextmanager
def serving(**settings: float) -> Generator[Service]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "sudo").write_text(REAL)
        (folder / "sudo").chmod(0o755)
        child = subprocess.Popen([sys.executable, "-c", SERVE, name, json.dumps(settings)])
        try:
            until(lambda: _listens(folder), within_s=DEADLINE_S, what="the socket")
            made = Service(folder, child.pid)
            made.allow(EVERYTHING)
            yield made
        finally:
            child.kill()
            child.wait(DEADLINE_S)


@pytest.fixture
def service() -> Generator[Service]:
    with serving() as made:
        yield made


@NEEDS_ROOT
def test_the_program_is_root_and_gets_what_its_caller_gave(service: Service) -> None:
    script = 'id -u; pwd; printf \'%s|\' "$SUDO_USER" "$SUDO_UID" "$OWN" "$LD_DEBUG" "$@"; cat; exit 7'
    env = os.environ | {"OWN": "a\nb=c", "LD_DEBUG": ""}
    done = service.run("sh", "-c", script, "sh", "", "ä b", input="typed", cwd="/usr/lib", env=env)
    uid = pwd.getpwnam(CALLER).pw_uid
    assert done.stdout == f"0\n/usr/lib\n{CALLER}|{uid}|a\nb=c||" + "|ä b|typed"
    assert (done.returncode, done.stderr) == (7, "")


@NEEDS_ROOT
def test_a_signal_that_ends_the_program_ends_the_client_too(service: Service) -> None:
    assert service.run("sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL
    assert service.run("sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM


@NEEDS_ROOT
@pytest.mark.parametrize(
    "listed",
    [
        "",
        "User daemon is not allowed to run sudo on here.\n",
        "    (ALL : ALL) ALL\n",
        "    (ALL : ALL) NOPASSWD: /usr/bin/true\n",
        "    (root) NOPASSWD: ALL\n",
        "    (ALL : ALL) NOEXEC: NOPASSWD: ALL\n",
        "    (ALL) NOPASSWD: ALL, !/bin/su\n",
        "    (ALL) NOPASSWD: ALL\n    (ALL) PASSWD: /bin/su\n",
        "    (ALL) NOPASSWD: ALL\n" * 4000,
    ],
)
def test_whoever_has_less_than_everything_gets_nothing(service: Service, listed: str) -> None:
    """Twin: everything, without a password, gets everything."""
    service.allow(listed)
    done = service.run("id")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sudo: ")
    service.allow(EVERYTHING)
    assert service.run("id", "-u").stdout == "0\n"


@NEEDS_ROOT
def test_a_program_that_cannot_tell_the_rights_is_a_refusal(service: Service) -> None:
    (service.folder / "sudo").write_text(f"#!/bin/sh\necho '{EVERYTHING.splitlines()[-1]}'\nexit 1\n")
    assert service.run("id").returncode == 1


@NEEDS_ROOT
def test_the_kernel_says_who_asks(service: Service) -> None:
    """The rights of one user are of no use to another."""
    service.allow("User bin is not allowed to run sudo on here.\n", "bin")
    assert "not allowed" in service.run("id", name="bin").stderr
    assert service.run("id", "-u").stdout == "0\n"


@NEEDS_ROOT
def test_signals_reach_the_program_and_a_killed_client_takes_it_along(service: Service) -> None:
    ready = "trap 'echo term; kill $!; exit 3' TERM; echo $$; sleep 60 & wait"
    with subprocess.Popen(service.argv("sh", "-c", ready), stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        client.stdout.readline()
        client.send_signal(signal.SIGTERM)
        assert client.wait(DEADLINE_S) == 3
        assert client.stdout.read() == "term\n"
    with subprocess.Popen(service.argv("sh", "-c", ready), stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        pid = int(client.stdout.readline())
        client.kill()
        until(lambda: not Path(f"/proc/{pid}").exists(), within_s=DEADLINE_S, what="the program's end")


@NEEDS_ROOT
def test_on_a_terminal_it_has_one_of_its_own_and_an_interrupt_ends_all_of_it(service: Service) -> None:
    ours, theirs = os.openpty()
    try:
        script = "tty; stty size; echo ready; sleep 60; echo never"
        argv = ["setsid", "--ctty", *service.argv("sh", "-c", script)]
        subprocess.run(["stty", "rows", "11", "cols", "77"], stdin=theirs, check=True)
        with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs) as client:
            try:
                shown = _read_until(ours, b"ready\r\n")
                assert shown.startswith(b"/dev/pts/")
                assert os.ttyname(theirs).encode() not in shown
                assert b"11 77\r\n" in shown

                def interrupted() -> bool:
                    # More than once: on a busy machine one in ten is lost, it is not known where.
                    os.write(ours, b"\x03")
                    return client.poll() is not None

                until(interrupted, within_s=DEADLINE_S, what="its end", every_s=0.5)
                assert client.returncode == -signal.SIGINT
                # Ours is what it was: it echoes.
                os.write(ours, b"typed")
                assert b"typed" in _read_until(ours, b"typed")
            finally:
                client.kill()
    finally:
        os.close(ours)
        os.close(theirs)


def _read_until(descriptor: int, mark: bytes) -> bytes:
    read = b""
    while mark not in read:
        read += os.read(descriptor, 4096)
    return read


def _body(*texts: str) -> bytes:
    body = "\0".join(texts).encode()
    return struct.pack("!I", len(body)) + body


VALID = _body("sudo", "", "/", "1", "true")


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("sent", "streams"),
    [
        (VALID, 0),
        (VALID, 2),
        (VALID, 4),
        (VALID, 200),
        (_body("bash", "", "/", "0"), 3),
        (_body("sudo", "", "/", "2", "true"), 3),
        (_body("sudo", "", "/", "-1"), 3),
        (_body("sudo", "", "/", "x"), 3),
        (_body("sudo", ""), 3),
        (_body("sudo", "terminal", "/", "1", "true"), 3),
        (_body("sudo", "", "/no/such", "1", "true"), 3),
        (VALID[:-1], 3),
        (b"\0", 3),
        (struct.pack("!I", 0xFFFFFFFF) + bytes(2 << 20), 3),
    ],
)
def test_what_is_no_request_is_an_error_that_leaves_nothing(
    service: Service, sent: bytes, streams: int
) -> None:
    """Twin: the request that they differ from is served."""
    before = service.descriptors()
    service.allow(EVERYTHING, "root")
    assert _ask(service, sent, streams).startswith(b"error ")
    assert _ask(service, VALID, 3) == b"exit 0"
    until(lambda: service.descriptors() <= before, within_s=DEADLINE_S, what="no descriptor left")


def _ask(service: Service, sent: bytes, streams: int) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection, Path(os.devnull).open("r+b") as null:
        connection.settimeout(DEADLINE_S)
        connection.connect(str(service.folder / "socket"))
        with contextlib.suppress(ConnectionError):
            done = socket.send_fds(connection, [sent], [null.fileno()] * streams)
            connection.sendall(sent[done:])
            if sent != VALID:  # it would end the program
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            return connection.recv(4096)
        return b"error that its rest was not read for"


@NEEDS_ROOT
def test_descriptors_of_later_bytes_are_closed(service: Service) -> None:
    service.allow(EVERYTHING, "root")
    before = service.descriptors()
    ours, theirs = os.pipe()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(service.folder / "socket"))
        socket.send_fds(connection, [VALID[:5]], [0, 1, 2])
        socket.send_fds(connection, [VALID[5:]], [theirs])
        assert connection.recv(4096) == b"exit 0"
    os.close(theirs)
    assert os.read(ours, 1) == b""  # nobody else has it
    os.close(ours)
    until(lambda: service.descriptors() <= before, within_s=DEADLINE_S, what="no descriptor left")


@NEEDS_ROOT
def test_a_request_that_does_not_come_is_not_waited_for() -> None:
    with serving(_REQUEST_DEADLINE_S=0.05) as service, socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(service.folder / "socket"))
        assert idle.recv(4096) == b"error the request is not complete"


@NEEDS_ROOT
@pytest.mark.parametrize("limit", ["_MOST_OF_ONE_USER", "_MOST_CONNECTIONS"])
def test_one_too_many_is_refused(limit: str) -> None:
    with serving(**{limit: 1}) as service:
        argv = service.argv("sh", "-c", "echo; cat")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(argv, text=True, **pipes) as first:
            assert first.stdout
            first.stdout.readline()
            assert service.run("id").stderr == "sudo: too many at once\n"
            first.communicate(timeout=DEADLINE_S)
        assert service.run("id", "-u").stdout == "0\n"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sudo.Places:
    diversions = tmp_path / "diversions"
    diversions.write_text("")
    monkeypatch.setattr(sudo, "_DIVERSIONS", diversions)
    program = tmp_path / "bin" / "sudo"
    program.parent.mkdir()
    program.write_text("the real one")
    package = Path(sudo_client.__file__).parent.parent
    return sudo.Places([sys.executable], str(package), program=program, folder=tmp_path / "aside")


def test_the_real_program_is_moved_and_dpkg_is_told_once(places: sudo.Places, tmp_path: Path) -> None:
    for _ in range(2):
        assert sudo.install(places)
        assert (places.folder / "sudo").read_text() == "the real one"
        assert (places.folder / "sudoedit").readlink() == Path("sudo")
        assert os.access(places.program, os.X_OK)
        told = (tmp_path / "diversions").read_text()
        assert told == f"{places.program}\n{places.folder / 'sudo'}\n:\n"
    places.program.write_text("a newer one")
    assert sudo.install(places)
    assert (places.folder / "sudo").read_text() == "a newer one"


def test_a_template_without_sudo_or_with_a_link_stays_as_it_is(places: sudo.Places) -> None:
    other = places.program.rename(places.program.with_name("other"))
    assert not sudo.install(places)
    places.program.symlink_to(other)
    assert not sudo.install(places)
    assert places.program.is_symlink()
    assert not places.folder.exists()


@pytest.mark.anyio
async def test_a_program_that_comes_with_another_root_is_served_then(
    places: sudo.Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore may show the agent another root than the one that it was started over."""
    served: list[sudo.Places] = []

    class Service:
        def __init__(self, reaper: object, places: sudo.Places) -> None:
            self._places = places

        async def run(self) -> None:
            served.append(self._places)

    monkeypatch.setattr(sudo, "SudoService", Service)
    monkeypatch.setattr(sudo, "is_needed", lambda: True)
    monkeypatch.setattr(sudo, "own_places", lambda: places)
    hidden = places.program.rename(places.program.with_name("hidden"))
    service = sudo.Sudo(Reaper())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.serve())
        await asyncio.sleep(0)
        await service.look()
        await asyncio.sleep(0)
        assert served == []
        hidden.rename(places.program)
        await service.look()
    assert served == [places]
    assert (places.folder / "sudo").read_text() == "the real one"


@NEEDS_ROOT
def test_root_gets_the_real_program_without_an_agent(places: sudo.Places) -> None:
    assert sudo.install(places)
    code = places.program.read_text().replace("c.main()", f'c.FOLDER = "{places.folder}"; c.main()')
    places.program.write_text(code)
    shutil.copy("/bin/echo", places.folder / "sudo")
    done = subprocess.run([places.program, "-n", "a  b"], capture_output=True, text=True, check=True)
    assert done.stdout == "a  b"
