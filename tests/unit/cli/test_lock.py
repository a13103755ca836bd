"""One server for each state folder, and other commands learn from the lock file who it is."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloche_server.cli import lock
from cloche_server.cli.lock import StateLock
from cloche_server.config import Config
from cloche_wire.errors import Conflict, NotFound


def _publish(held: StateLock, *, is_ready: bool = True, **changes: object) -> None:
    held.publish(Config(isolation="container", **changes), is_ready=is_ready)  # type: ignore[arg-type]


def test_second_server_on_the_same_folder_is_refused_with_advice(tmp_path: Path) -> None:
    held = StateLock.take(tmp_path)
    with pytest.raises(Conflict, match="already runs") as caught:
        StateLock.take(tmp_path)
    assert caught.value.hint is not None
    held.release()
    StateLock.take(tmp_path).release()


def test_lock_tells_who_holds_it_and_where_it_listens(tmp_path: Path) -> None:
    held = StateLock.take(tmp_path)
    _publish(held, port=3005)
    server = lock.running_server(tmp_path)
    assert server.supervisor.pid == os.getpid()
    assert server.url == "http://127.0.0.1:3005"
    held.release()


def test_released_lock_names_nobody(tmp_path: Path) -> None:
    held = StateLock.take(tmp_path)
    _publish(held)
    held.release()
    assert not lock.is_held(tmp_path)
    with pytest.raises(NotFound):
        lock.running_server(tmp_path)


def test_folder_without_a_server_has_no_lock(tmp_path: Path) -> None:
    assert not lock.is_held(tmp_path / "missing")


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:3000"), ("::", "http://[::1]:3000"), ("::1", "http://[::1]:3000")],
)
def test_address_for_clients_can_be_connected_to(host: str, url: str, tmp_path: Path) -> None:
    held = StateLock.take(tmp_path)
    _publish(held, host=host)
    assert lock.running_server(tmp_path).url == url
    held.release()


def test_whoever_reads_while_the_server_gets_ready_never_finds_half_of_it(tmp_path: Path) -> None:
    """Emptied first, it was read in between: `cloche env` right after a start found no server."""
    held = StateLock.take(tmp_path)
    _publish(held, is_ready=False)

    def publish() -> None:
        for turn in range(2000):
            _publish(held, is_ready=turn % 2 == 0, domain="long" * (turn % 3))

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(publish)
        while not writing.done():
            assert lock.running_server(tmp_path).port == 3000
    writing.result()
    held.release()
