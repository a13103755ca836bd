"""The supervisor starts three processes, replaces those that end, and ends them all in order."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.waiting import until
from tests.unit.cli import stub_component

from cloche_server.cli import component, serve
from cloche_server.cli.supervisor import NAMES, Supervisor
from cloche_server.config import Config
from cloche_wire.errors import Unavailable

_WITHIN_S = 30


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with serve.listen("127.0.0.1", 0) as made:
        yield made


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(component, "__name__", stub_component.__name__)
    monkeypatch.chdir(Path(__file__).parents[3])
    for folder in ("run", "log"):
        (tmp_path / folder).mkdir()
    return Config(state=str(tmp_path))


def _pid(config: Config, name: str) -> int:
    file = config.state_dir / f"{name}.pid"
    return int(file.read_text() or 0) if file.exists() else 0


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _when_ready(act: Callable[[], None]) -> Callable[[], None]:
    """Do something beside the supervisor's loop, then ask it to end."""

    def beside() -> None:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    return threading.Thread(target=beside).start


def test_everything_is_ended_and_drained_after_sigterm(config: Config, listener: socket.socket) -> None:
    said: list[str] = []
    Supervisor(config, listener, None).run(_when_ready(lambda: said.append("ready")))
    assert said == ["ready"]
    assert (config.state_dir / "drained").exists()
    assert all(_is_gone(_pid(config, name)) for name in NAMES)


def _pids(config: Config) -> dict[str, int]:
    def look() -> dict[str, int] | None:
        found = {name: _pid(config, name) for name in NAMES}
        return found if all(found.values()) else None

    return until(look, within_s=_WITHIN_S, what="three processes") or {}


def _kill(config: Config, name: str) -> set[str]:
    """End one process as a crash would; return the names of those that are others afterwards."""
    before = _pids(config)
    os.kill(before[name], signal.SIGKILL)
    until(lambda: _pids(config)[name] != before[name], within_s=_WITHIN_S, what=f"a new {name}")
    return {each for each, pid in _pids(config).items() if pid != before[each]}


def test_killed_process_is_replaced_while_the_others_stay(config: Config, listener: socket.socket) -> None:
    replaced: list[set[str]] = []
    kill_each = _when_ready(lambda: replaced.extend(_kill(config, name) for name in NAMES))
    Supervisor(config, listener, None).run(kill_each)
    assert replaced == [{name} for name in NAMES]


def test_process_that_cannot_run_here_ends_the_start_and_all_others(
    config: Config, listener: socket.socket
) -> None:
    (config.state_dir / "node-cannot-run").touch()
    supervisor = Supervisor(config, listener, config.state_dir / "log")
    with pytest.raises(Unavailable, match="the node cannot run"):
        supervisor.run(lambda: pytest.fail("ready without a node"))
    assert all(_is_gone(_pid(config, name)) for name in NAMES if _pid(config, name))


def test_what_the_processes_say_is_kept_in_a_file_for_each(config: Config, listener: socket.socket) -> None:
    log_dir = config.state_dir / "log"
    Supervisor(config, listener, log_dir).run(_when_ready(lambda: None))
    assert (log_dir / "edge.log").read_text() == "edge runs\n"
    assert (log_dir / "node.log").read_text() == "node runs\n"
