"""The official client's file API."""

import httpx
import pytest
from e2b.sandbox.filesystem.filesystem import WriteEntry

from e2b_code_interpreter import (
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    Sandbox,
)


def test_text_and_bytes_come_back_as_they_were_written(sandbox: Sandbox) -> None:
    sandbox.files.write("note.txt", "grüße\n")
    blob = bytes(range(256)) * 1000
    sandbox.files.write("/tmp/blob", blob)
    assert sandbox.files.read("/home/user/note.txt") == "grüße\n"
    assert bytes(sandbox.files.read("/tmp/blob", format="bytes")) == blob
    assert b"".join(sandbox.files.read("/tmp/blob", format="stream")) == blob


def test_an_empty_file_is_read_as_empty(sandbox: Sandbox) -> None:
    sandbox.files.write("empty", "")
    assert sandbox.files.read("empty") == ""


def test_several_files_are_written_at_once_in_order(sandbox: Sandbox) -> None:
    names = [f"/tmp/many/{number}.txt" for number in range(5)]
    written = sandbox.files.write_files([WriteEntry(path=name, data=name) for name in names])
    assert [info.path for info in written] == names
    assert [sandbox.files.read(name) for name in names] == names


def test_a_written_file_belongs_to_the_user_and_its_folders_are_made(sandbox: Sandbox) -> None:
    sandbox.files.write("deep/er/file.txt", "x")
    info = sandbox.files.get_info("deep/er/file.txt")
    assert (info.owner, info.group, info.permissions, info.size) == ("user", "user", "-rw-r--r--", 1)
    assert info.path == "/home/user/deep/er/file.txt"
    assert sandbox.files.get_info("deep/er").type == FileType.DIR


def test_list_shows_names_and_types(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("/tmp/listed/inner")
    sandbox.files.write("/tmp/listed/a.txt", "a")
    entries = {entry.name: entry.type for entry in sandbox.files.list("/tmp/listed")}
    assert entries == {"inner": FileType.DIR, "a.txt": FileType.FILE}


def test_make_exists_rename_remove(sandbox: Sandbox) -> None:
    assert sandbox.files.make_dir("/tmp/made/deep") is True
    assert sandbox.files.make_dir("/tmp/made/deep") is False
    sandbox.files.write("/tmp/made/one", "1")
    sandbox.files.rename("/tmp/made/one", "/tmp/made/two")
    assert not sandbox.files.exists("/tmp/made/one")
    assert sandbox.files.read("/tmp/made/two") == "1"
    sandbox.files.remove("/tmp/made")
    assert not sandbox.files.exists("/tmp/made")


def test_a_missing_file_and_a_folder_cannot_be_read(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundException):
        sandbox.files.read("/no/such/file")
    with pytest.raises(FileNotFoundException):
        sandbox.files.list("/no/such/folder")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.read("/tmp")


def test_a_watcher_reports_what_happens_in_its_folder(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("/home/user/watched")
    watcher = sandbox.files.watch_dir("/home/user/watched")
    sandbox.files.write("/home/user/watched/new.txt", "x")
    sandbox.files.remove("/home/user/watched/new.txt")
    sandbox.commands.run("sync")
    events = watcher.get_new_events()
    watcher.stop()
    kinds = [event.type for event in events if event.name == "new.txt"]
    assert FilesystemEventType.CREATE in kinds
    assert FilesystemEventType.WRITE in kinds
    assert FilesystemEventType.REMOVE in kinds


def test_signed_urls_need_no_headers_and_bear_no_change(sandbox: Sandbox) -> None:
    sandbox.files.write("/home/user/signed.txt", "by url")
    url = sandbox.download_url("/home/user/signed.txt")
    assert httpx.get(url).text == "by url"
    assert httpx.get(url.replace("signed.txt", "other.txt")).status_code == 401
    upload = sandbox.upload_url("/home/user/up.txt")
    assert httpx.post(upload, files={"file": ("up.txt", b"sent")}).status_code == 200
    assert sandbox.files.read("/home/user/up.txt") == "sent"
