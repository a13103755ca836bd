"""The journal, and the table of states."""

import contextlib
import errno
import os
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
    real = os.write

    def half(descriptor: int, content: bytes) -> int:
        return real(descriptor, content[: len(content) // 2])

    journal.write(record())
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            journal.write(record(state="ending"))
    assert Journal(tmp_path / "journal").read_all() == [record()]
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [f"{ID}.1.json"]


def test_of_two_records_the_newer_counts_and_goes_on(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.write(record())
    with monkeypatch.context() as killed_there:
        killed_there.setattr(Path, "unlink", lambda _, **__: None)
        for count in range(10):
            journal.write(record(slot=count))
    after = Journal(tmp_path / "journal")
    assert after.read_all() == [record(slot=9)]
    after.write(record(state="ending"))
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [f"{ID}.12.json"]
    after.remove(ID)
    assert after.read_all() == []


def test_a_paused_one_is_on_disk_with_its_name_before_the_older_goes(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, synced = tmp_path / "journal", list[tuple[str, list[str]]]()

    def sync(path: Path) -> None:
        synced.append((path.name, sorted(found.name for found in folder.iterdir())))

    monkeypatch.setattr("cloche_server.node.journal.sync", sync)
    journal.write(record(state="pausing"))
    assert synced == []  # twin: of one that is not on disk nothing is
    journal.write(record(state="paused", image="image-1"))
    assert synced == [
        (f"{ID}.new", [f"{ID}.1.json", f"{ID}.new"]),
        ("journal", [f"{ID}.1.json", f"{ID}.2.json"]),
    ]
    assert [path.name for path in folder.iterdir()] == [f"{ID}.2.json"]


@pytest.mark.parametrize("broken", ["journal", f"{ID}.new"])
def test_older_record_counts_where_the_newer_cannot_be_synced(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def sync(path: Path) -> None:
        if path.name == broken:
            raise OSError(errno.EIO, "Input/output error")

    journal.write(record(state="pausing"))
    with monkeypatch.context() as patched:
        patched.setattr("cloche_server.node.journal.sync", sync)
        with pytest.raises(OSError, match="Input/output error"):
            journal.write(record(state="paused", image="image-1"))
    assert Journal(tmp_path / "journal").read_all() == [record(state="pausing")]
    journal.write(record())
    assert Journal(tmp_path / "journal").read_all() == [record()]


@pytest.mark.parametrize("torn", [b"", b"{"])
def test_a_newer_one_that_a_crash_of_the_machine_has_torn_leaves_the_older(
    journal: Journal, tmp_path: Path, torn: bytes
) -> None:
    paused = record(state="paused", image="image-1")
    journal.write(paused)
    (tmp_path / "journal" / f"{ID}.2.json").write_bytes(torn)
    after = Journal(tmp_path / "journal")
    assert after.read_all() == [paused]
    after.write(record(state="resuming", image="image-1"))
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [f"{ID}.2.json"]


def test_records_of_earlier_versions_are_read(journal: Journal, tmp_path: Path) -> None:
    (tmp_path / "journal" / f"{ID}.json").write_bytes(msgspec.json.encode(record()))
    assert journal.read_all() == [record()]
    journal.write(record(state="ending"))
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [f"{ID}.1.json"]


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
        ("creating", "opened"): "building",
        ("building", "end"): "ending",
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
