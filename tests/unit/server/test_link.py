"""The link between the server's own processes."""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from cloche_server import link
from cloche_wire.errors import (
    Internal,
    InvalidArgument,
    PortClosed,
    SandboxNotFound,
    Unavailable,
    error_types,
)

pytestmark = pytest.mark.anyio


class Params(msgspec.Struct):
    number: int = 0


Serving = Callable[[link.Handler], contextlib.AbstractAsyncContextManager[Path]]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    @contextlib.asynccontextmanager
    async def serve(handler: link.Handler) -> AsyncIterator[Path]:
        path = tmp_path / "some.sock"
        with link.listen(path, owner_uid=os.geteuid()) as listener:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(link.serve(listener, handler))
                async with asyncio.timeout(20):
                    yield path
                task.cancel()

    return serve


async def echo(method: str, params: msgspec.Raw) -> link.Answer:
    return link.Answer({"method": method, "params": params})


async def double(method: str, params: msgspec.Raw) -> link.Answer:
    return link.Answer(msgspec.json.decode(params, type=Params).number * 2)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def raw_exchange(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_call_gives_the_result(serving: Serving) -> None:
    async with serving(double) as path:
        assert await link.call(path, "double", Params(21), int, timeout_s=5) == 42


async def test_method_and_parameters_arrive(serving: Serving) -> None:
    async with serving(echo) as path:
        answer = await link.call(path, "any", Params(1), dict, timeout_s=5)
        assert answer == {"method": "any", "params": {"number": 1}}


@pytest.mark.parametrize(
    "kind", [kind for kind in error_types().values() if kind.__module__ == "cloche_wire.errors"]
)
async def test_error_comes_back_as_the_same_class(serving: Serving, kind: type[Internal]) -> None:
    async def fail(method: str, params: msgspec.Raw) -> link.Answer:
        raise kind("it failed: 1", hint="do that")

    async with serving(fail) as path:
        with pytest.raises(kind) as caught:
            await link.call(path, "x", {}, dict, timeout_s=5)
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("it failed: 1", "do that")


async def test_error_nobody_foresaw_tells_nothing_of_itself(serving: Serving) -> None:
    async def fail(method: str, params: msgspec.Raw) -> link.Answer:
        raise RuntimeError("a secret")

    async with serving(fail) as path:
        with pytest.raises(Internal, match=r"^x failed$"):
            await link.call(path, "x", {}, dict, timeout_s=5)


async def test_parameters_of_the_wrong_type_are_the_callers_fault(serving: Serving) -> None:
    async with serving(double) as path:
        with pytest.raises(InvalidArgument):
            await link.call(path, "double", {"number": "many"}, int, timeout_s=5)


@pytest.mark.parametrize(
    "frame",
    [b"{}", b"no json", b'{"method": 1}', b"", b"[]", b"\xff\xfe"],
    ids=["empty", "text", "type", "none", "list", "bytes"],
)
async def test_request_that_is_none_does_not_end_the_server(serving: Serving, frame: bytes) -> None:
    async with serving(double) as path:
        await raw_exchange(path, struct.pack(">I", len(frame)) + frame)
        assert await link.call(path, "double", Params(2), int, timeout_s=5) == 4


async def test_oversize_frame_is_refused_unread(serving: Serving) -> None:
    async with serving(double) as path:
        assert await raw_exchange(path, struct.pack(">I", link.MAX_FRAME_BYTES + 1)) == b""
        assert await link.call(path, "double", Params(2), int, timeout_s=5) == 4


async def test_caller_that_leaves_in_the_middle_of_a_frame_harms_nobody(serving: Serving) -> None:
    async with serving(double) as path:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(struct.pack(">I", 1000) + b"{")
        writer.close()
        await writer.wait_closed()
        assert await link.call(path, "double", Params(2), int, timeout_s=5) == 4


async def test_large_frame_passes_whole(serving: Serving) -> None:
    text = "x" * (4 << 20)
    async with serving(echo) as path:
        answer = await link.call(path, "echo", {"text": text}, dict, timeout_s=10)
    assert answer["params"] == {"text": text}


async def test_descriptor_is_passed_and_the_senders_is_closed(serving: Serving) -> None:
    async def give(method: str, params: msgspec.Raw) -> link.Answer:
        reading, writing = os.pipe()
        os.write(writing, b"hello")
        os.close(writing)
        return link.Answer({}, descriptors=(reading,))

    async with serving(give) as path:
        before = open_descriptors()
        for _ in range(3):
            _, (received,) = await link.call_for_descriptors(path, "give", {}, timeout_s=5)
            assert os.read(received, 10) == b"hello"
            assert not os.get_inheritable(received)
            os.close(received)
        await link.call(path, "give", {}, dict, timeout_s=5)
        assert open_descriptors() == before


async def test_events_follow_the_first_result(serving: Serving) -> None:
    async def count() -> AsyncIterator[link.Event]:
        for number in range(3):
            yield link.Event("number", Params(number))

    async def watch(method: str, params: msgspec.Raw) -> link.Answer:
        return link.Answer([7], events=count())

    async with serving(watch) as path:
        seen = [item async for item in link.subscribe(path, "watch", list[int])]
    assert seen[0] == [7]
    assert [(name, msgspec.json.decode(data)) for name, data in seen[1:]] == [
        ("number", {"number": number}) for number in range(3)
    ]


async def test_error_of_a_subscription_is_raised(serving: Serving) -> None:
    async def fail(method: str, params: msgspec.Raw) -> link.Answer:
        raise SandboxNotFound("no such sandbox: x")

    async with serving(fail) as path:
        with pytest.raises(SandboxNotFound):
            await anext(link.subscribe(path, "watch", dict))


async def test_nobody_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"some\.sock does not answer"):
        await link.call(tmp_path / "some.sock", "x", {}, dict, timeout_s=5)
    with pytest.raises(Unavailable):
        await anext(link.subscribe(tmp_path / "some.sock", "x", dict))


@pytest.mark.parametrize("answer", [b"", b"\0", struct.pack(">I", 100) + b"{", struct.pack(">I", 1 << 31)])
async def test_peer_that_vanishes_before_it_answers_is_unavailable(tmp_path: Path, answer: bytes) -> None:
    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(vanish, tmp_path / "some.sock")
    async with server:
        with pytest.raises(Unavailable):
            await link.call(tmp_path / "some.sock", "x", {}, dict, timeout_s=5)


async def test_peer_that_vanishes_while_it_is_asked_is_unavailable(tmp_path: Path) -> None:
    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(vanish, tmp_path / "some.sock")
    async with server:
        with pytest.raises(Unavailable):
            await link.call(tmp_path / "some.sock", "x", {"text": "x" * (4 << 20)}, dict, timeout_s=5)


async def test_silent_peer_is_a_timeout_and_leaks_nothing(tmp_path: Path) -> None:
    with link.listen(tmp_path / "some.sock", owner_uid=os.geteuid()):
        before = open_descriptors()
        with pytest.raises(TimeoutError):
            await link.call(tmp_path / "some.sock", "x", {}, dict, timeout_s=0.01)
        assert open_descriptors() == before


async def test_handler_goes_on_when_its_caller_leaves(serving: Serving) -> None:
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(method: str, params: msgspec.Raw) -> link.Answer:
        begun.set()
        await go_on.wait()
        ended.set()
        return link.Answer({})

    async with serving(slow) as path:
        with pytest.raises(TimeoutError):
            await link.call(path, "slow", {}, dict, timeout_s=0.05)
        await begun.wait()
        go_on.set()
        await ended.wait()


async def test_calls_are_answered_side_by_side(serving: Serving) -> None:
    arrived = 0
    all_there = asyncio.Event()

    async def meet(method: str, params: msgspec.Raw) -> link.Answer:
        nonlocal arrived
        arrived += 1
        if arrived == 20:
            all_there.set()
        await all_there.wait()
        return link.Answer({})

    async with serving(meet) as path, asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(link.call(path, "meet", {}, dict, timeout_s=5))


def test_socket_is_its_owners_alone_and_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "some.sock"
    link.listen(path, owner_uid=os.geteuid()).close()
    with link.listen(path, owner_uid=os.geteuid()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))


async def test_port_closed_is_not_taken_for_its_parent(serving: Serving) -> None:
    async def closed(method: str, params: msgspec.Raw) -> link.Answer:
        raise PortClosed("nothing listens on port 1")

    async with serving(closed) as path:
        with pytest.raises(PortClosed):
            await link.call_for_descriptors(path, "dial", {}, timeout_s=5)


async def test_a_full_queue_of_the_listener_delays_a_call_and_does_not_break_it(tmp_path: Path) -> None:
    path = tmp_path / "some.sock"
    with (
        link.listen(path, owner_uid=os.geteuid()) as listener,
        contextlib.ExitStack() as waiting,
    ):
        listener.listen(0)  # a queue of one
        waiting.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        answers: list[int] = []

        async def ask() -> None:
            answers.append(await link.call(path, "double", Params(4), int, timeout_s=20))

        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(ask())
            await asyncio.sleep(0)
            assert not asking.done()
            serving = tasks.create_task(link.serve(listener, double))
            await asking
            serving.cancel()
        assert answers == [8]
