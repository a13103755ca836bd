"""The supervisor starts the server's processes, replaces those that end, and ends them all in order."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from tests.support.source import ROOT
from tests.support.waiting import until
from tests.unit.cli import stub_server
from tests.unit.cli.stub_server import Seen

from cloche_server.cli.component import NAMES

_WITHIN_S = 30


class Stub:
    """One supervisor of stubs, beside the tests: it forks, which takes a process with one thread."""

    def __init__(self, state: Path) -> None:
        for folder in ("run", "log"):
            (state / folder).mkdir()
        self.state = state
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "Stub":
        argv = [sys.executable, "-m", stub_server.__name__, str(self.state)]
        self.process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        return self

    def wait_until_ready(self) -> "Stub":
        until((self.state / "ready").exists, within_s=_WITHIN_S, what="a supervisor that is ready")
        # Only node and edge are asked whether they are up.
        until(lambda: all(map(self.seen, NAMES)), within_s=_WITHIN_S, what="all of its processes")
        return self

    def end(self) -> tuple[int, str]:
        """Ask it to end; return its status and what it said."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.end_by_itself()

    def end_by_itself(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it said."""
        assert self.process is not None
        said = self.process.communicate(timeout=_WITHIN_S)[1]
        return self.process.returncode, said

    def wait_for_another(self, name: str, pid: int) -> None:
        until(lambda: self.all_seen()[name].pid != pid, within_s=_WITHIN_S, what=f"a new {name}")

    def seen(self, name: str) -> Seen | None:
        file = self.state / f"{name}.json"
        return msgspec.json.decode(file.read_bytes(), type=Seen) if file.exists() else None

    def all_seen(self) -> dict[str, Seen]:
        found = {name: seen for name in NAMES if (seen := self.seen(name))}
        assert found.keys() == set(NAMES)
        return found


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    made = Stub(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()
        for name in NAMES:
            with suppress(ProcessLookupError):
                if seen := made.seen(name):
                    os.kill(seen.pid, signal.SIGKILL)


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_everything_is_ended_and_drained_after_sigterm(stub: Stub) -> None:
    stub.start().wait_until_ready()
    assert stub.end()[0] == 0
    assert (stub.state / "drained").exists()
    assert all(_is_gone(seen.pid) for seen in stub.all_seen().values())


def test_killed_process_is_replaced_while_the_others_stay(stub: Stub) -> None:
    stub.start().wait_until_ready()
    for name in NAMES:
        before = stub.all_seen()
        os.kill(before[name].pid, signal.SIGKILL)
        stub.wait_for_another(name, before[name].pid)
        assert {each for each, seen in stub.all_seen().items() if seen.pid != before[each].pid} == {name}
    assert stub.end()[0] == 0


def test_process_that_cannot_run_here_ends_the_start_and_all_others(stub: Stub) -> None:
    (stub.state / "node-cannot-run").touch()
    status, said = stub.start().end_by_itself()
    assert status == 1
    assert "the node cannot run on this machine" in said
    assert not (stub.state / "ready").exists()
    assert all(_is_gone(seen.pid) for name in NAMES if (seen := stub.seen(name)))


def test_what_the_processes_say_is_kept_in_a_file_for_each(stub: Stub) -> None:
    stub.start().wait_until_ready().end()
    assert (stub.state / "log" / "edge.log").read_text() == "edge runs\n"
    assert (stub.state / "log" / "node.log").read_text() == "node runs\n"


def test_a_process_inherits_its_standard_streams_and_the_edge_the_public_socket(stub: Stub) -> None:
    """A fork hands everything down: locks, pipes of other logs, files that some library has open."""
    stub.start().wait_until_ready()
    for name, seen in stub.all_seen().items():
        others = [target for number, target in seen.descriptors.items() if number > 2]
        assert [target.partition(":")[0] for target in others] == (["socket"] if name == "edge" else [])
        assert [seen.descriptors[number] for number in (0, 1)] == ["/dev/null", "/dev/null"]
        assert seen.descriptors[2].startswith("pipe:")


def test_each_process_is_out_of_reach_of_ctrl_c(stub: Stub) -> None:
    """The terminal sends it to the supervisor's group, and the supervisor ends the others in order."""
    stub.start().wait_until_ready()
    assert all(seen.group == seen.pid for seen in stub.all_seen().values())


def test_no_process_handles_a_signal_for_the_supervisor(stub: Stub) -> None:
    """Its handlers write to a pipe that is the supervisor's, and wake whoever waits."""
    stub.start().wait_until_ready()
    assert {name: seen.caught for name, seen in stub.all_seen().items()} == {name: [] for name in NAMES}
