"""Host name and files of /etc, in a folder that belongs to the test."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cloche_agent.host_identity import HostIdentity, host_identity
from cloche_wire.errors import InvalidArgument


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Host names that were set."""
    found: list[str] = []
    monkeypatch.setattr(socket, "sethostname", found.append)
    return found


def test_files_and_name_are_those_that_init_tells(tmp_path: Path, names: list[str]) -> None:
    told = {"hostname": "i1", "etcFiles": {"hosts": "127.0.0.1 i1\n", "resolv.conf": "nameserver 10.0.0.1\n"}}
    host_identity(told).show(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "hostname": "i1\n", "hosts": "127.0.0.1 i1\n", "resolv.conf": "nameserver 10.0.0.1\n",
    }  # fmt: skip
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}
    assert names == ["i1"]


def test_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    etc, outside = tmp_path / "etc", tmp_path / "outside"
    etc.mkdir()
    outside.write_text("theirs")
    (etc / "hosts").symlink_to(outside)
    HostIdentity({"hosts": "ours"}, "").show(etc)
    assert outside.read_text() == "theirs"
    assert not (etc / "hosts").is_symlink()
    assert (etc / "hosts").read_text() == "ours"


def test_what_cannot_be_written_is_warned_of_and_leaves_nothing(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "sethostname", refuse)
    (tmp_path / "hosts").mkdir()
    HostIdentity({"hosts": "ours", "hostname": "i1"}, "i1").show(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"hosts", "hostname"}
    assert [record.getMessage() for record in caplog.records] == [
        "cannot set the host name: Operation not permitted",
        f"cannot write {tmp_path}/hosts: Is a directory",
    ]


def test_init_that_says_nothing_changes_nothing(tmp_path: Path, names: list[str]) -> None:
    host_identity({"accessToken": "t"}).show(tmp_path)
    assert not [*tmp_path.iterdir(), *names]


@pytest.mark.parametrize(
    "told",
    [
        {"etcFiles": []},
        {"etcFiles": {"hosts": 1}},
        *({"etcFiles": {name: ""}} for name in ("", ".", "..", "a/b", "/etc/hosts", "a\0b", "x" * 65, "a\n")),
        {"hostname": 1},
        {"hostname": "a b"},
        {"hostname": "x" * 65},
    ],
)
def test_what_is_no_file_and_no_name_is_refused(told: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        host_identity(told)
