"""filesystem.Filesystem, end to end."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.unit.agent.running_agent import Agent, Answer, StreamError, own_name


def _call(agent: Agent, method: str, **message: object) -> Answer:
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in message.items()}
    return agent.call(f"filesystem.Filesystem/{method}", fields)


def _entry(agent: Agent, path: Path) -> dict[str, Any]:
    return _call(agent, "Stat", path=path).json["entry"]


def test_stat_tells_what_ls_tells(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"12345")
    path.chmod(0o640)
    entry = _entry(agent, path)
    assert entry.pop("modifiedTime").endswith("Z")
    assert entry.pop("group")
    assert entry == {"name": "x.txt", "type": "FILE_TYPE_FILE", "path": str(path), "size": "5", "mode": 0o640,
                     "permissions": "-rw-r-----", "owner": own_name()}  # fmt: skip
    tmp_path.chmod(0o1755)
    folder = _entry(agent, tmp_path)
    assert (folder["type"], folder["permissions"]) == ("FILE_TYPE_DIRECTORY", "dtrwxr-xr-x")
    assert int(folder["size"]) > 0


def test_link_is_told_as_its_target(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("folder")
    entry = _entry(agent, tmp_path / "link")
    assert (entry["type"], entry["mode"], entry["permissions"]) == (
        "FILE_TYPE_DIRECTORY",
        0o700,
        "Lrwxrwxrwx",
    )
    assert entry["symlinkTarget"] == str(tmp_path / "folder")
    assert "isSymlink" not in entry
    (tmp_path / "dangling").symlink_to("nothing")
    assert "type" not in _entry(agent, tmp_path / "dangling")


def test_missing_path_is_not_found(agent: Agent, tmp_path: Path) -> None:
    for method in ("Stat", "ListDir", "CreateWatcher"):
        answer = _call(agent, method, path=tmp_path / "nope")
        assert (answer.status, answer.json["code"]) == (404, "not_found"), method
    assert _call(agent, "Remove", path=tmp_path / "nope").status == 200
    answer = _call(agent, "Move", source=tmp_path / "nope", destination=tmp_path / "x")
    assert (answer.status, answer.json["message"]) == (404, f"source file not found: {tmp_path / 'nope'}")


def test_make_dir_makes_parents_once(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert _call(agent, "MakeDir", path=path).json["entry"]["permissions"] == "drwxr-xr-x"
    again = _call(agent, "MakeDir", path=path)
    assert (again.status, again.json) == (
        409,
        {"code": "already_exists", "message": f"directory already exists: {path}"},
    )
    (path / "file").touch()
    assert _call(agent, "MakeDir", path=path / "file").json["code"] == "invalid_argument"
    assert _call(agent, "MakeDir", path=path / "file" / "x").json["code"] == "invalid_argument"


def test_move_makes_parents_and_replaces_a_file(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("old")
    answer = _call(agent, "Move", source=tmp_path / "a", destination=tmp_path / "b" / "x")
    assert answer.json["entry"]["path"] == str(tmp_path / "b" / "x")
    assert (tmp_path / "b" / "x").read_text() == "a"
    assert _call(agent, "Move", source=tmp_path / "b", destination=tmp_path / "c" / "d").status == 200
    (tmp_path / "e").mkdir()
    refused = _call(agent, "Move", source=tmp_path / "e", destination=tmp_path / "c")
    assert (refused.status, refused.json["code"]) == (500, "internal")


def test_list_dir_is_depth_first_in_order_and_bounded(agent: Agent, tmp_path: Path) -> None:
    for folder in ("b/c/d", "a"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "b" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "b")

    def names(depth: int) -> list[str]:
        entries = _call(agent, "ListDir", path=tmp_path, depth=depth).json.get("entries", [])
        return [str(Path(entry["path"]).relative_to(tmp_path)) for entry in entries]

    assert names(0) == names(1) == ["a", "b", "link"]
    assert names(2) == ["a", "b", "b/c", "b/file", "link"]
    assert names(9) == ["a", "b", "b/c", "b/c/d", "b/file", "link"]
    through = _call(agent, "ListDir", path=tmp_path / "link").json["entries"]
    assert [entry["path"] for entry in through] == [str(tmp_path / "link" / name) for name in ("c", "file")]
    refused = _call(agent, "ListDir", path=tmp_path / "b" / "file")
    assert refused.json["message"] == f"path is not a directory: {tmp_path / 'b' / 'file'}"


def test_remove_takes_the_tree_and_not_what_links_lead_to(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "gone" / "deep").mkdir(parents=True)
    (tmp_path / "gone" / "deep" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "gone" / "deep" / "file").touch()
    assert _call(agent, "Remove", path=tmp_path / "gone").status == 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    assert _call(agent, "Remove", path=tmp_path / "link").status == 200
    assert (tmp_path / "kept" / "file").exists()


def test_name_that_is_no_text_does_not_break_the_list(agent: Agent, tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).touch()
    assert [entry["name"] for entry in _call(agent, "ListDir", path=tmp_path).json["entries"]] == ["\ufffd"]


def test_watcher_gathers_events_of_the_whole_tree(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    watcher = {"watcherId": _call(agent, "CreateWatcher", path=tmp_path, recursive=True).json["watcherId"]}
    (tmp_path / "before" / "f").write_text("x")
    (tmp_path / "before" / "f").chmod(0o600)
    (tmp_path / "before" / "f").rename(tmp_path / "g")
    (tmp_path / "g").unlink()
    (tmp_path / "new" / "deep").mkdir(parents=True)
    found = _call(agent, "GetWatcherEvents", **watcher).json["events"]
    kinds = {(event["name"], event["type"].removeprefix("EVENT_TYPE_")) for event in found}
    assert kinds == {
        ("before/f", "CREATE"), ("before/f", "WRITE"), ("before/f", "CHMOD"), ("before/f", "RENAME"),
        ("g", "CREATE"), ("g", "REMOVE"), ("new", "CREATE"), ("new/deep", "CREATE"),
    }  # fmt: skip
    (tmp_path / "new" / "deep" / "late").touch()
    later = _call(agent, "GetWatcherEvents", **watcher).json["events"]
    assert (later[0]["name"], later[0]["type"]) == ("new/deep/late", "EVENT_TYPE_CREATE")
    assert _call(agent, "GetWatcherEvents", **watcher).json == {}
    assert _call(agent, "RemoveWatcher", **watcher).status == 200
    assert _call(agent, "GetWatcherEvents", **watcher).status == 404


def _events(agent: Agent, watcher: dict[str, str]) -> list[tuple[str, str]]:
    found = _call(agent, "GetWatcherEvents", **watcher).json.get("events", [])
    return [(event["name"], event["type"].removeprefix("EVENT_TYPE_")) for event in found]


def test_upload_of_a_new_file_is_told_as_created_given_to_its_user_and_written(
    agent: Agent, tmp_path: Path
) -> None:
    """The three events that E2B's daemon causes: the official clients' tests count them."""
    watcher = {"watcherId": _call(agent, "CreateWatcher", path=tmp_path).json["watcherId"]}
    target = "/files?path=" + str(tmp_path / "x")
    agent.request("POST", target, b"data", Content_Type="application/octet-stream")
    assert _events(agent, watcher) == [("x", "CREATE"), ("x", "CHMOD"), ("x", "WRITE")]
    _call(agent, "RemoveWatcher", **watcher)


def test_what_came_into_a_new_folder_before_it_was_watched_is_told(agent: Agent, tmp_path: Path) -> None:
    watcher = {"watcherId": _call(agent, "CreateWatcher", path=tmp_path, recursive=True).json["watcherId"]}
    os.kill(agent.pid, signal.SIGSTOP)  # so that the agent cannot be faster
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").write_text("x")
    (tmp_path / "new" / "empty").touch()
    os.kill(agent.pid, signal.SIGCONT)
    assert sorted(_events(agent, watcher)) == [
        ("new", "CREATE"), ("new/empty", "CREATE"), ("new/file", "CREATE"), ("new/file", "WRITE"),
    ]  # fmt: skip
    _call(agent, "RemoveWatcher", **watcher)


def test_folder_that_was_made_while_events_were_lost_is_watched(agent: Agent, tmp_path: Path) -> None:
    watcher = {"watcherId": _call(agent, "CreateWatcher", path=tmp_path, recursive=True).json["watcherId"]}
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    (tmp_path / "x").touch()
    os.kill(agent.pid, signal.SIGSTOP)
    for mode in range(queue + 1):  # equal events one after the other count once
        (tmp_path / "x").chmod(0o600 + mode % 2)
        (tmp_path / "y").touch()
    (tmp_path / "new").mkdir()
    os.kill(agent.pid, signal.SIGCONT)
    assert ("new", "CREATE") not in _events(agent, watcher)
    (tmp_path / "new" / "file").touch()
    assert ("new/file", "CREATE") in _events(agent, watcher)
    _call(agent, "RemoveWatcher", **watcher)


def test_folder_that_moves_is_watched_under_its_new_name_or_no_more(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "root" / "a" / "deep").mkdir(parents=True)
    watcher = {
        "watcherId": _call(agent, "CreateWatcher", path=tmp_path / "root", recursive=True).json["watcherId"]
    }
    (tmp_path / "root" / "a").rename(tmp_path / "root" / "b")
    (tmp_path / "root" / "b" / "deep" / "x").touch()
    assert ("b/deep/x", "CREATE") in _events(agent, watcher)
    (tmp_path / "root" / "b" / "deep" / "y").touch()
    assert ("b/deep/y", "CREATE") in _events(agent, watcher)
    (tmp_path / "root" / "b").rename(tmp_path / "outside")
    assert _events(agent, watcher) == [("b", "RENAME")]
    (tmp_path / "outside" / "deep" / "z").touch()
    assert _events(agent, watcher) == []
    _call(agent, "RemoveWatcher", **watcher)


def test_watch_stream_begins_with_start_and_carries_entries(agent: Agent, tmp_path: Path) -> None:
    request = {"path": str(tmp_path), "includeEntry": True}
    with contextlib.closing(agent.stream("filesystem.Filesystem/WatchDir", request)) as stream:
        events = iter(stream)
        assert next(events) == {"start": {}}
        (tmp_path / "x").write_text("123")
        event = next(events)["filesystem"]
    assert (event["name"], event["type"]) == ("x", "EVENT_TYPE_CREATE")
    assert event["entry"]["path"] == str(tmp_path / "x")


def test_watch_stream_keeps_alive_and_ends_at_its_deadline(agent: Agent, tmp_path: Path) -> None:
    headers = {"Keepalive-Ping-Interval": "1", "Connect-Timeout-Ms": "1300"}
    stream = agent.stream("filesystem.Filesystem/WatchDir", {"path": str(tmp_path)}, **headers)
    with contextlib.closing(stream):
        events = iter(stream)
        assert [next(events), next(events)] == [{"start": {}}, {"keepalive": {}}]
        with pytest.raises(StreamError, match="deadline_exceeded"):
            next(events)


def test_file_cannot_be_watched(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert _call(agent, "CreateWatcher", path=tmp_path / "x").json["code"] == "invalid_argument"
