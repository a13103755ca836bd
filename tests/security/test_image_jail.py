"""The jail in which images are fetched: what a program in it sees, and where it gets."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.jailed import jailed
from tests.support.waiting import until

from cloche_server.config import PULL_UID
from cloche_server.isolation import mount_points
from cloche_server.node.pulling import jail
from cloche_server.node.pulling.gate import Rules
from cloche_server.node.pulling.jail import Done, Order

pytestmark = [pytest.mark.needs("root", "overlay"), pytest.mark.timeout(60)]
ASK = """
import os, socket, sys
host, _, port = os.environ["HTTPS_PROXY"].removeprefix("http://").partition(":")
with socket.create_connection((host, int(port)), 5) as there:
    there.sendall(sys.argv[1].encode().decode("unicode_escape").encode())
    answer = b""
    while piece := there.recv(1 << 16):
        answer += piece
print(len(answer), answer[:400].decode(errors="replace"))
"""


def run(script: str, *words: str, rules: Rules | None = None, **more: Any) -> Done:
    """Run a line of the shell in the jail."""
    mount_points.prepare()
    order = Order(["/bin/sh", "-c", script, "sh", *words], rules or Rules(), **more)
    argv = [sys.executable, "-I", "-m", jail.__name__]
    text = msgspec.json.encode(order)
    done = subprocess.run(
        argv, input=text, capture_output=True, timeout=50, check=True, env={"LANG": "C.UTF-8"}
    )
    assert done.stderr == b""
    return msgspec.json.decode(done.stdout, type=Done)


def ask(request: str, rules: Rules | None = None) -> Done:
    """Send something to the gate, from inside."""
    return run(
        'exec /usr/bin/python3 -I -c "$1" "$2"', ASK, request.encode("unicode_escape").decode(), rules=rules
    )


@contextmanager
def listening(answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello") -> Iterator[int]:
    """A server of this machine's loopback that says the same to everybody; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_it_is_nobody() -> None:
    """A user id of its own, no group, no capability, no way to one, alone with its processes."""
    done = run("id -u; id -G; echo $$; cat /proc/self/status; unshare -Ur true; echo $?")
    assert done.stdout.split("\n")[:3] == [str(PULL_UID), str(PULL_UID), "1"]
    script = (
        "import ctypes;l=ctypes.CDLL(None);d=(ctypes.c_uint32*6)();h=(ctypes.c_uint32*2)(0x20080522,0);"
        "l.capget(h,d);print(list(d),l.prctl(39,0,0,0,0),[l.prctl(23,n,0,0,0) for n in range(38)])"
    )
    shown = run('/usr/bin/python3 -I -c "$1"', script).stdout
    capabilities, no_new_privileges, bounding = eval(shown.replace("] 1 [", "], 1, ["))
    assert not any(capabilities)
    assert no_new_privileges == 1
    assert [number for number, has in enumerate(bounding) if has] == [6, 7]  # setgid and setuid, of nobody


def test_it_sees_programs_and_nothing_of_this_machine(tmp_path: Path) -> None:
    """No home, no state, no process, no account; what it can write to is its own folder."""
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, PULL_UID, PULL_UID)
    tmp_path.chmod(0o700)
    done = run("ls -A / /etc; echo in >/work/file; touch /x /usr/x /etc/x 2>&1; echo $?", folder=str(work))
    shown = set(done.stdout.split())
    assert not shown & {
        "root",
        "home",
        "var",
        "proc",
        "sys",
        "dev",
        "run",
        "opt",
        "passwd",
        "shadow",
        "hosts",
    }
    assert {"usr", "work", "auth.json", "ssl"} <= shown
    assert done.stdout.split()[-1] == "1"
    assert (work / "file").read_text() == "in\n"
    run("cp /usr/bin/true /work/program; chmod 755 /work/program", folder=str(work))
    assert run("/work/program", folder=str(work)).status == 126


def test_it_inherits_nothing() -> None:
    """Three descriptors and the variables that it needs."""
    script = (
        "import os\nfor n in range(1024):\n try: os.fstat(n)\n except OSError: continue\n print(n, end=' ')\n"
    )
    done = run('/usr/bin/python3 -I -c "$1"; echo; env', script)
    assert done.stdout.startswith("0 1 2 \n"), done
    names = {line.partition("=")[0] for line in done.stdout.splitlines()[1:]}
    assert names - {"PWD", "_", "SHLVL", "OLDPWD"} == {
        "PATH", "HOME", "TMPDIR", "LANG", "HTTP_PROXY", "HTTPS_PROXY"
    }  # fmt: skip


def test_its_credentials_are_in_one_file_of_its_own() -> None:
    done = run(
        "stat -c '%a %u' /etc/auth.json; cat /etc/auth.json; echo; env",
        host="h.x",
        username="u",
        password="pass",
    )
    mode, keys, *variables = done.stdout.splitlines()
    assert mode == f"600 {PULL_UID}"
    assert json.loads(keys) == {"auths": {"h.x": {"auth": "dTpwYXNz"}}}
    assert not [line for line in variables if "pass" in line or "dTpw" in line]


def test_its_network_is_the_gate_alone() -> None:
    """No interface but a loopback of its own: nothing of this machine's answers there."""
    with listening() as port:
        script = (
            "import socket\nfor a in (('127.0.0.1', PORT), ('8.8.8.8', 53)):\n"
            " try:\n  socket.create_connection(a, 2)\n except OSError as e:\n  print(e.strerror)\n"
            "print([n for _, n in socket.if_nameindex()])\n"
        )
        done = run('/usr/bin/python3 -I -c "$1"', script.replace("PORT", str(port)))
    assert done.stdout == "Connection refused\nNetwork is unreachable\n['lo']\n"


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:1", "localhost:1", "10.0.0.1:443", "169.254.169.254:80", "192.168.1.1:443", "0.0.0.0:1",
     "[::1]:1", "[::ffff:127.0.0.1]:1", "[fd00::1]:443", "[fe80::1]:443", "0x7f.1:1", "2130706433:1"],
)  # fmt: skip
def test_the_gate_leads_to_no_private_address(target: str) -> None:
    """Whatever an address is written as; nor by plain HTTP."""
    for request in (f"CONNECT {target} HTTP/1.1\r\n\r\n", f"GET http://{target}/ HTTP/1.1\r\n\r\n"):
        done = ask(request)
        assert "502 Bad Gateway" in done.stdout
        assert done.problem is not None
        assert done.problem.kind in {"refused", "unreachable"}
        if "unreachable" in done.problem.kind:
            assert "not known" in done.problem.reason or "upported" in done.problem.reason


def test_the_gate_leads_where_the_operator_says() -> None:
    with listening() as port:
        target = f"127.0.0.1:{port}"
        through = ask(f"CONNECT {target} HTTP/1.1\r\n\r\nsomething", Rules(trusted=(target,)))
        assert through.stdout.endswith("hello\n")
        plain = ask(f"GET http://{target}/v2/ HTTP/1.1\r\nhost: {target}\r\n\r\n", Rules(trusted=(target,)))
        assert plain.stdout.endswith("hello\n")
        script = f"import socket\ns = socket.create_connection(('127.0.0.1', {port}))\n"
        script += "s.sendall(b'x')\nprint(s.recv(99)[-5:])"
        door = run('/usr/bin/python3 -I -c "$1"', script, rules=Rules(doors=(port,)))
        assert door.stdout == "b'hello'\n"
        excepted = ask(f"CONNECT {target} HTTP/1.1\r\n\r\nsomething", Rules(exceptions=("127.0.0.0/8",)))
        assert excepted.stdout.endswith("hello\n")


def test_the_gate_lets_no_more_through_than_it_may() -> None:
    with listening(b"x" * 3_000_000) as port:
        rules = Rules(trusted=("127.0.0.1",), max_bytes=1 << 20)
        done = ask(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nsomething", rules)
    assert done.problem is not None
    assert done.problem.kind == "too_large"
    assert not done.stdout or int(done.stdout.split()[0]) <= (1 << 20) + 100


@pytest.mark.parametrize(
    "request_text",
    ["\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "CONNECT x:y HTTP/1.1\r\n\r\n", "CONNECT  HTTP/1.1\r\n\r\n",
     "A" * 70_000],
)  # fmt: skip
def test_nonsense_ends_its_own_connection_only(request_text: str) -> None:
    done = ask(request_text)
    assert "Traceback" not in done.stdout


def test_a_large_file_ends_it(tmp_path: Path) -> None:
    os.chown(tmp_path, PULL_UID, PULL_UID)
    run("head -c 3000000 /usr/bin/python3 >/work/file", folder=str(tmp_path), rules=Rules(max_bytes=1 << 20))
    assert (tmp_path / "file").stat().st_size == 1 << 20


def test_it_ends_with_who_has_started_it() -> None:
    """The node may be killed in the middle: neither the program nor the gate goes on."""
    mount_points.prepare()
    text = msgspec.json.encode(Order(["/bin/sh", "-c", "sleep 300"], Rules()))
    argv = [sys.executable, "-I", "-m", jail.__name__]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env={"LANG": "C.UTF-8"}
    )
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.close()
    until(lambda: len(jailed()) >= 2, within_s=10, what="both processes")
    process.kill()
    process.wait(timeout=10)
    until(lambda: not jailed(), within_s=10, what="their end")
