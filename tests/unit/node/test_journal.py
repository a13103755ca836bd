"""The journal, and the table of states."""

import contextlib
import errno
import stat
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.node.conftest import request_for

from cloche_server.isolation.base import ProcessIdentity
from cloche_server.node import lifecycle
from cloche_server.node.journal import Journal, Record
from cloche_server.node.lifecycle import next_state
from cloche_wire.errors import Conflict

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = request_for("a").sandbox_id


def record(**changes: object) -> Record:
    made = Record(
        request=request_for("a", env={"NAME": "värde"}, metadata={"k": "v"}),
        state="running",
        slot=3,
        started_at=NOW,
        end_at=NOW,
        deadline_boot_s=12.5,
        boot_id="boot",
        isolation="container",
        init=ProcessIdentity(7, 8, "boot"),
    )
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def test_what_was_written_is_read(journal: Journal) -> None:
    journal.write(record())
    assert journal.read_all() == [record()]


@given(
    env=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    ),
    deadline=st.floats(0, 1e9),
)
def test_every_record_comes_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, env: dict[str, str], deadline: float
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal"))
    written = record(request=request_for("a", env=env), deadline_boot_s=deadline)
    journal.write(written)
    assert journal.read_all() == [written]


def test_newer_record_takes_the_place_of_the_older(journal: Journal) -> None:
    journal.write(record())
    journal.write(record(state="ending", end_reason="killed"))
    assert [found.state for found in journal.read_all()] == ["ending"]


def test_removal_is_idempotent(journal: Journal) -> None:
    journal.write(record())
    journal.remove(ID)
    journal.remove(ID)
    assert journal.read_all() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"state": "running"}'])
def test_unreadable_record_is_dropped_and_the_others_stay(
    journal: Journal, tmp_path: Path, content: bytes
) -> None:
    journal.write(record())
    torn = tmp_path / "journal" / "ibbb.json"
    torn.write_bytes(content)
    assert journal.read_all() == [record()]
    assert not torn.exists()


def test_older_record_stays_when_the_disk_is_full(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        real(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    journal.write(record())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space"):
            journal.write(record(state="ending"))
    assert journal.read_all() == [record()]
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [f"{ID}.json"]


def test_tokens_in_it_are_roots_alone(journal: Journal, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700


def test_table_allows_these_steps_and_no_others() -> None:
    allowed: dict[tuple[str, str], str] = {}
    for state, event in product(get_args(lifecycle.State), get_args(lifecycle.Event)):
        with contextlib.suppress(Conflict):
            allowed[state, event] = next_state(state, event)
    assert allowed == {
        ("creating", "started"): "running",
        ("creating", "made_ahead"): "ready",
        ("creating", "end"): "ending",
        ("ready", "claimed"): "creating",
        ("ready", "end"): "ending",
        ("running", "end"): "ending",
        ("running", "pause"): "pausing",
        ("pausing", "saved"): "paused",
        ("pausing", "not_saved"): "running",
        ("paused", "resume"): "resuming",
        ("resuming", "started"): "running",
        ("resuming", "not_resumed"): "paused",
        ("ending", "removed"): "gone",
    }
