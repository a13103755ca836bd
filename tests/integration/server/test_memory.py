"""What an idle server takes of the machine."""

from pathlib import Path

from tests.support.fixtures import NEEDS_A_SERVER
from tests.support.server import PARTS, Server

pytestmark = NEEDS_A_SERVER

IDLE_MIB = 120
"""The promise. 112 were measured, with Debian's Python 3.11 and nobody else using its files."""
_SHARED_AT_LEAST = 0.6
"""Of a process's memory that is no file's, right after its start."""


def _kib(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


def _processes(server: Server) -> list[int]:
    launcher = Path(f"/proc/{server.part('node')}/task/{server.part('node')}/children").read_text().split()
    return [server.pid, *map(server.part, PARTS), *map(int, launcher)]


def test_an_idle_server_takes_what_was_promised(own_server: Server) -> None:
    """The sum over all its processes, each page counted once, however many share it."""
    taken_mib = {pid: _kib(pid)["Pss"] / 1024 for pid in _processes(own_server)}
    assert sum(taken_mib.values()) <= IDLE_MIB, taken_mib


def test_a_process_that_is_started_again_shares_the_code_that_it_runs(own_server: Server) -> None:
    """It is forked from what is loaded already; after an exec nothing would be shared but files."""
    own_server.kill_part("egress")
    kib = _kib(own_server.part("egress"))
    assert kib["Private_Dirty"] < (1 - _SHARED_AT_LEAST) * kib["Anonymous"], kib
