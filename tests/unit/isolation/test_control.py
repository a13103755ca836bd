"""Speaking to a sandbox's kernel: what is asked, how often, and what is believed of the answer."""

import json
import os
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloche_server.isolation.gvisor import control
from cloche_server.isolation.launching.server import FilesInUse

DONE = b'{"success":true,"err":"","result":{}}'


class Asked(NamedTuple):
    """What a kernel was asked."""

    call: dict[str, Any]
    descriptors: list[int]


@contextmanager
def kernel(path: Path, answer: Callable[[socket.socket, Asked], None]) -> Generator[list[Asked]]:
    """Serves calls one after another, each on a connection of its own, until the end of the block."""
    heard: list[Asked] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    text, descriptors, _, _ = socket.recv_fds(connection, 65_536, 10)
                    heard.append(Asked(json.loads(text), descriptors))
                    answer(connection, heard[-1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for asked in heard:
                for descriptor in asked.descriptors:
                    os.close(descriptor)


def says(*parts: bytes) -> Callable[[socket.socket, Asked], None]:
    def answer(connection: socket.socket, _: Asked) -> None:
        for part in parts:
            connection.sendall(part)

    return answer


def act(verb: control.Verb, folder: Path, *, timeout_s: float = 20, shared: Sequence[str] = ()) -> None:
    control.act(
        verb, str(folder / "socket"), folder / "frozen", str(folder), shared=shared, timeout_s=timeout_s
    )


def test_sandbox_is_frozen_saved_and_thawed(tmp_path: Path) -> None:
    def writes(connection: socket.socket, asked: Asked) -> None:
        for number, descriptor in enumerate(asked.descriptors):
            os.write(descriptor, b"%d" % number)
        connection.sendall(DONE)

    with kernel(tmp_path / "socket", writes) as heard:
        act("freeze", tmp_path)
        assert (tmp_path / "frozen").exists()
        act("save", tmp_path)
        act("thaw", tmp_path)
        assert not (tmp_path / "frozen").exists()
    assert [asked.call["method"] for asked in heard] == [
        "containerManager.Pause", "containerManager.Checkpoint", "containerManager.Resume",
    ]  # fmt: skip
    assert heard[1].call["arg"]["Resume"] is True, "the save would end the sandbox"
    names = "checkpoint.img", "pages_meta.img", "pages.img"
    assert [(tmp_path / name).read_text() for name in names] == ["0", "1", "2"]


@pytest.mark.parametrize("dump", [None, [], {}, "x", [1]])
def test_kernel_that_does_not_say_what_is_in_use_is_not_saved_beside_volumes(
    tmp_path: Path, dump: object
) -> None:
    answer = json.dumps({"success": True, "err": "", "result": dump}).encode()
    with kernel(tmp_path / "socket", says(answer)) as heard:
        act("freeze", tmp_path)
        with pytest.raises(ValueError, match="does not say"):
            act("save", tmp_path, shared=["/data"])
    assert [asked.call["method"] for asked in heard][1:] == ["containerManager.ProcfsDump"]
    assert not (tmp_path / "pages.img").exists()


def test_kernel_whose_programs_use_a_volume_is_not_saved_and_one_whose_do_not_is(tmp_path: Path) -> None:
    """An answer of many descriptors is larger than any other."""
    process = {"cwd": "/data/folder", "env": ["x" * 1000] * 300, "status": {"comm": "sh", "pid": 7}}

    def answers(connection: socket.socket, asked: Asked) -> None:
        is_look = asked.call["method"] == "containerManager.ProcfsDump"
        result = [process] if is_look else {}
        connection.sendall(json.dumps({"success": True, "err": "", "result": result}).encode())

    with kernel(tmp_path / "socket", answers) as heard:
        act("freeze", tmp_path)
        with pytest.raises(FilesInUse, match=r"/data/folder by sh \(pid 7\)"):
            act("save", tmp_path, shared=["/data"])
        assert not (tmp_path / "pages.img").exists()
        act("save", tmp_path, shared=["/other"])
    asked = [one.call["method"].partition(".")[2] for one in heard]
    assert asked == ["Pause", "ProcfsDump", "ProcfsDump", "Checkpoint"]


def test_what_a_kernel_gets_it_can_only_write_to(tmp_path: Path) -> None:
    refused: list[int] = []

    def reads(connection: socket.socket, asked: Asked) -> None:
        for descriptor in asked.descriptors:
            try:
                os.read(descriptor, 1)
            except OSError:
                refused.append(descriptor)
        connection.sendall(DONE)

    (tmp_path / "frozen").touch()
    with kernel(tmp_path / "socket", reads):
        act("save", tmp_path)
    assert len(refused) == 3


def test_kernel_is_not_thawed_more_often_than_frozen(tmp_path: Path) -> None:
    """It ends itself over that, and the sandbox with it."""
    with kernel(tmp_path / "socket", says(DONE)) as heard:
        with pytest.raises(OSError, match="does not stand still"):
            act("thaw", tmp_path)
        act("freeze", tmp_path)
        with pytest.raises(OSError, match="stands still already"):
            act("freeze", tmp_path)
        act("thaw", tmp_path)
        with pytest.raises(OSError, match="does not stand still"):
            act("thaw", tmp_path)
    assert [asked.call["method"] for asked in heard] == ["containerManager.Pause", "containerManager.Resume"]


def test_refused_freeze_leaves_it_running(tmp_path: Path) -> None:
    with (
        kernel(tmp_path / "socket", says(b'{"success":false,"err":"no space left on device","result":{}}')),
        pytest.raises(OSError, match="no space left on device"),
    ):
        act("freeze", tmp_path)
    assert not (tmp_path / "frozen").exists()


def test_answer_may_come_in_pieces(tmp_path: Path) -> None:
    with kernel(tmp_path / "socket", says(*(bytes([byte]) for byte in DONE))):
        act("freeze", tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b"[true]",
        b"x" * 200_000,
        b'"success"',
        b'{"success":1}',
        b"[" * 5000,
        b'{"success":"true"}',
    ],
)
def test_answer_of_another_shape_is_none(tmp_path: Path, answer: bytes) -> None:
    def says_it(connection: socket.socket, _: Asked) -> None:
        try:
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return  # nobody listens so long

    with kernel(tmp_path / "socket", says_it), pytest.raises(OSError, match=r"no answer|ended|refuses"):
        act("freeze", tmp_path)
    assert not (tmp_path / "frozen").exists()


def test_kernel_that_says_nothing_is_not_waited_for_longer(tmp_path: Path) -> None:
    done = threading.Event()

    def hangs(_: socket.socket, __: Asked) -> None:
        done.wait()

    with kernel(tmp_path / "socket", hangs):
        with pytest.raises(TimeoutError):
            act("freeze", tmp_path, timeout_s=0.05)
        done.set()


def test_kernel_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        act("freeze", tmp_path)
