"""Boundary: the server's processes are forks of one, and none finds a secret of another in its memory."""

import os
import re
from pathlib import Path

from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import Server

pytestmark = NEEDS_A_SERVER

_WRITABLE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ \S+ *(?!\[v)")


def _remembers(pid: int, *secrets: bytes) -> set[bytes]:
    """Which of the secrets stand in memory that the process has written or inherited."""
    found: set[bytes] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if area := _WRITABLE.match(line):
                first, end = (int(address, 16) for address in area.groups())
                content = os.pread(memory.fileno(), end - first, first)
                found |= {secret for secret in secrets if secret in content}
    return found


def _user(pid: int) -> str:
    """The four user ids of a process, as the kernel says them."""
    return next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line[:4] == "Uid:")


def _secrets(server: Server) -> set[bytes]:
    """The first key, the operator's token, and a line of each private key."""
    texts = [server.key.encode(), (server.state / "admin-token").read_bytes().strip()]
    keys = [(server.state / "tls" / name).read_bytes().splitlines()[1] for name in ("ca.key", "edge.key")]
    return {*texts, *keys}


def test_the_supervisor_has_forgotten_all_keys_that_its_start_made(server: Server) -> None:
    """The parent of all processes made keys and certificates, and holds none: what it forks inherits none."""
    secrets = _secrets(server)
    assert len(secrets) == 4
    assert _remembers(os.getpid(), *secrets) == secrets  # twin: who has read them is found out
    assert _remembers(server.pid, *secrets) == set()


def test_a_process_that_is_forked_in_the_middle_of_the_run_finds_nothing_either(own_server: Server) -> None:
    """Requests with the key have gone through, processes have come and gone: the next ones know as little."""
    own_server.request("GET", "/v2/sandboxes")
    for name in ("egress", "content", "node"):
        own_server.kill_part(name)
        assert _remembers(own_server.part(name), *_secrets(own_server)) == set()
    assert _remembers(own_server.pid, *_secrets(own_server)) == set()


def test_each_process_has_its_own_user_and_the_supervisor_one_thread(server: Server) -> None:
    """A fork is made by one thread; the child then becomes the user that nobody else is."""
    assert [path.name for path in Path(f"/proc/{server.pid}/task").iterdir()] == [str(server.pid)]
    users = {name: _user(server.part(name)) for name in ("node", "api", "edge", "egress", "content")}
    assert len(set(users.values())) == 5


def test_no_process_sees_the_environment_of_whoever_started_the_server(server: Server) -> None:
    """What a shell holds, tokens of other services for one, stays there; the search path is handed on."""
    for pid in (server.pid, *(server.part(name) for name in ("node", "api", "edge", "egress", "content"))):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        names = {variable.partition(b"=")[0] for variable in variables}
        assert b"PATH" in names
        assert not names & {b"HOME", b"CLOCHE_TEMPLATES", b"PYTEST_CURRENT_TEST"}
