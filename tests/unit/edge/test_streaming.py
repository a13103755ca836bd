"""Streams pass at once, stop when either side stops, and end only where their service ended them."""

import asyncio
import contextlib
import tracemalloc

import pytest
from tests.unit.edge.world import DAEMON, World

from cloche_server.edge.streams import Stream

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n"


def request(host: str, path: str = "/", *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}.x.y", *fields, "", ""]).encode()


class Line:
    """A service that says what the test tells it to, and notes when its client leaves."""

    def __init__(self) -> None:
        self.connected: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.connected.set_result(writer)
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        self.left.set()


async def test_each_piece_of_an_answer_arrives_before_the_next_is_written(world: World) -> None:
    line = Line()
    world.ports["ione", DAEMON] = line.serve
    async with world.running():
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(*world.address)
        writer.write(request(f"{DAEMON}-ione", "/process.Process/Start"))
        service = await line.connected
        service.write(CHUNKED)
        assert b"connect+json" in await reader.readuntil(b"\r\n\r\n")
        for number in range(5):
            service.write(b"2\r\n%d\n\r\n" % number)
            assert await reader.readexactly(7) == b"2\r\n%d\n\r\n" % number
        service.write(b"0\r\n\r\n")
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        writer.close()


@pytest.mark.parametrize(
    "framing", [b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"Content-Length: 10\r\n\r\nabc"]
)
async def test_an_answer_that_breaks_off_has_no_end_for_the_client_either(
    world: World, framing: bytes
) -> None:
    line = Line()
    world.ports["ione", DAEMON] = line.serve
    async with world.running():
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(*world.address)
        writer.write(request(f"{DAEMON}-ione"))
        service = await line.connected
        service.write(b"HTTP/1.1 200 OK\r\n" + framing)
        await service.drain()
        service.transport.abort()
        answer = await reader.read()
        assert b"abc" in answer
        assert not answer.endswith(b"0\r\n\r\n")
        writer.close()


async def test_an_agent_that_ends_without_an_answer_cuts_the_client(world: World) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.read_request(reader)

    world.ports["ione", DAEMON] = silent
    async with world.running():
        await world.add_sandbox("ione")
        with pytest.raises(ConnectionResetError):
            await world.ask(request(f"{DAEMON}-ione", "/process.Process/List"))


async def test_a_sandbox_that_goes_cuts_its_streams_and_then_is_not_found(world: World) -> None:
    lines = {name: Line() for name in ("ione", "itwo")}
    async with world.running():
        readers: dict[str, asyncio.StreamReader] = {}
        writers: list[asyncio.StreamWriter] = []
        for name, line in lines.items():
            world.ports[name, DAEMON] = line.serve
            await world.add_sandbox(name)
            readers[name], writer = await asyncio.open_connection(*world.address)
            writers.append(writer)
            writer.write(request(f"{DAEMON}-{name}"))
            (await line.connected).write(CHUNKED)
            await readers[name].readuntil(b"\r\n\r\n")
        world.end_sandbox("ione")
        with pytest.raises(ConnectionResetError):
            await readers["ione"].read()
        await lines["ione"].left.wait()
        assert b"The sandbox was not found" in await world.get(f"{DAEMON}-ione.x.y", "/health")
        (await lines["itwo"].connected).write(b"0\r\n\r\n")
        assert await readers["itwo"].readexactly(5) == b"0\r\n\r\n"
        for writer in writers:
            writer.close()


async def test_a_dead_agent_is_a_missing_sandbox_even_before_the_node_says_so(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        await world.get(f"{DAEMON}-ione.x.y", "/health")
        world.end_sandbox("ione", announce=False)
        assert b"The sandbox was not found" in await world.get(f"{DAEMON}-ione.x.y", "/health")


async def test_a_probe_under_way_when_the_sandbox_goes_is_answered(world: World) -> None:
    line = Line()
    world.ports["ione", DAEMON] = line.serve
    async with world.running():
        await world.add_sandbox("ione")
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(world.get(f"{DAEMON}-ione.x.y", "/health"))
            await line.connected
            world.end_sandbox("ione")
    assert b"The sandbox was not found" in answer.result()


async def test_a_client_that_leaves_ends_the_work_that_is_done_for_it(world: World) -> None:
    line = Line()
    world.ports["ione", DAEMON] = line.serve
    async with world.running():
        await world.add_sandbox("ione")
        _, writer = await asyncio.open_connection(*world.address)
        writer.write(request(f"{DAEMON}-ione", "/execute", "Content-Length: 2", method="POST") + b"{}")
        await line.connected
        writer.close()
        await line.left.wait()


async def test_a_user_service_that_gives_no_answer_is_a_502_with_its_port(world: World) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.read_request(reader)

    async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await world.read_request(reader)

    world.ports["ione", 22], world.ports["ione", 80] = ssh, silent
    async with world.running():
        await world.add_sandbox("ione")
        for port in (22, 80):
            answer = await world.get(f"{port}-ione.x.y")
            assert answer.startswith(b"HTTP/1.1 502")
            assert b'"port": %d' % port in answer


async def test_a_websocket_passes_bytes_both_ways_and_half_closes(world: World) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        writer.write(
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: y\r\n"
            b"\r\nhello"
        )
        while data := await reader.read(100):
            writer.write(data.upper())
        writer.write(b"bye")
        await writer.drain()

    world.ports["ione", 8000] = upper
    async with world.running():
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(*world.address)
        writer.write(
            request("8000-ione", "/ws", "Connection: keep-alive, Upgrade", "Upgrade: websocket") + b"early"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert head.count(b"Upgrade: websocket") == 1
        assert await reader.readexactly(10) == b"helloEARLY"
        writer.write(b"\x00more")
        assert await reader.readexactly(5) == b"\x00MORE"
        writer.write_eof()
        assert await reader.read() == b"bye"
        writer.close()


async def test_an_upgrade_to_http_2_is_not_offered_to_the_service(world: World) -> None:
    world.ports["ione", 8000] = world.echo
    async with world.running():
        await world.add_sandbox("ione")
        answer = await world.get(
            "8000-ione.x.y", "/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"
        )
    assert b"h2c" not in answer


async def test_a_big_upload_waits_for_a_slow_service_in_constant_memory(world: World) -> None:
    size = 48 * 1024 * 1024
    go_on = asyncio.Event()
    received = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        while received < size:
            received += len(await reader.read(1 << 18))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    world.ports["ione", DAEMON] = slow
    async with world.running():
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(*world.address)
        piece = bytes(1 << 20)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        writer.write(request(f"{DAEMON}-ione", "/files", f"Content-Length: {size}", method="POST"))
        sent = 0
        with contextlib.suppress(TimeoutError):  # until nobody takes any more
            while sent < size:
                writer.write(piece)
                sent += len(piece)
                async with asyncio.timeout(0.3):
                    await writer.drain()
        assert sent < size / 2
        go_on.set()
        while sent < size:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        writer.close()
    assert received == size
    assert peak - before < 8 * 1024 * 1024


async def test_a_big_download_waits_for_a_slow_client(world: World) -> None:
    size = 48 * 1024 * 1024
    written = 0

    async def fast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while written < size:
            writer.write(bytes(1 << 20))
            written += 1 << 20
            await writer.drain()

    world.ports["ione", DAEMON] = fast
    async with world.running():
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(*world.address)
        writer.write(request(f"{DAEMON}-ione", "/files"))
        await reader.readuntil(b"\r\n\r\n")
        seen = -1
        while written != seen:  # until it stalls
            seen = written
            await asyncio.sleep(0.1)
        assert written < size / 2
        got = 0
        while got < size:
            got += len(await reader.read(1 << 18))
        assert got == size
        writer.close()


async def test_an_early_refusal_of_an_upload_reaches_the_client(world: World) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")

    world.ports["ione", DAEMON] = refuse
    async with world.running():
        await world.add_sandbox("ione")
        answer = await world.ask(
            request(f"{DAEMON}-ione", "/files", "Content-Length: 300000", method="POST") + bytes(200_000)
        )
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"Connection: close" in answer
    assert answer.endswith(b"big")


async def test_a_client_that_expects_100_gets_it_once_the_service_is_connected(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(*world.address)
        writer.write(
            request(f"{DAEMON}-ione", "/files", "Expect: 100-continue", "Content-Length: 2", method="POST")
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
        refused = await world.ask(
            request("80-inone", "/", "Expect: 100-continue", "Content-Length: 2", method="POST")
        )
        assert refused.startswith(b"HTTP/1.1 502")


BODILESS = {
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"Content-Length: 5\r\n"),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204"),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"Content-Length: 5\r\n"),
    "empty": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"Content-Length: 0\r\n"),
}


@pytest.mark.parametrize(("method", "said", "expected"), BODILESS.values(), ids=BODILESS)
async def test_an_answer_without_a_body_leaves_the_connection_usable(
    world: World, method: str, said: bytes, expected: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.read_request(reader)
        writer.write(said)

    world.ports["ione", DAEMON] = serve
    async with world.running():
        await world.add_sandbox("ione")
        answer = await world.ask(
            request(f"{DAEMON}-ione", method=method) + request("80-inone", "/", "Connection: close")
        )
    first, _, second = answer.partition(b"\r\n\r\n")
    assert expected in first + b"\r\n"
    assert b"Transfer-Encoding" not in first
    assert second.startswith(b"HTTP/1.1 502")


async def test_a_body_that_ends_with_its_connection_becomes_chunks(world: World) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await world.read_request(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

    world.ports["ione", 8000] = serve
    async with world.running():
        await world.add_sandbox("ione")
        modern = await world.get("8000-ione.x.y")
        old = await world.ask(b"GET / HTTP/1.0\r\nHost: 8000-ione.x.y\r\n\r\n")
    assert modern.endswith(
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nd\r\nuntil the end\r\n0\r\n\r\n"
    )
    assert old.endswith(b"Connection: close\r\n\r\nuntil the end")


async def test_a_chunked_upload_is_framed_anew(world: World) -> None:
    async with world.running():
        await world.add_sandbox("ione")
        body = b"3;ext=1\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
        await world.ask(
            request(
                f"{DAEMON}-ione", "/files", "Transfer-Encoding: chunked", "Connection: close", method="POST"
            )
            + body
        )
    assert world.seen[0].endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")


async def test_a_stop_ends_idle_connections_and_lets_a_request_finish(world: World) -> None:
    line = Line()
    world.ports["ione", DAEMON] = line.serve
    async with world.running():
        await world.add_sandbox("ione")
        idle, idle_writer = await asyncio.open_connection(*world.address)
        idle_writer.write(request("80-inone"))
        await idle.readuntil(b"\r\n\r\n")
        busy, busy_writer = await asyncio.open_connection(*world.address)
        busy_writer.write(request(f"{DAEMON}-ione"))
        service = await line.connected
        world.edge.stop()
        await idle.read()
        service.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert (await busy.read()).endswith(b"ok")
        idle_writer.close()
        busy_writer.close()


async def test_a_task_wakes_for_a_transfer_and_not_for_each_of_its_pieces(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, pieces, size = 0, 0, 8 << 20
    drain, data_received = Stream.drain, Stream.data_received

    async def counted_drain(stream: Stream) -> None:
        nonlocal waits
        waits += 1
        await drain(stream)

    def counted_data(stream: Stream, data: bytes) -> None:
        nonlocal pieces
        pieces += 1
        data_received(stream, data)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        for _ in range(size >> 13):
            writer.write(b"2000\r\n" + bytes(8192) + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)  # so that the edge sees many pieces
        writer.write(b"0\r\n\r\n")

    monkeypatch.setattr(Stream, "drain", counted_drain)
    monkeypatch.setattr(Stream, "data_received", counted_data)
    world.ports["ione", DAEMON] = send
    async with world.running():
        await world.add_sandbox("ione")
        reader, writer = await asyncio.open_connection(*world.address)
        writer.write(request(f"{DAEMON}-ione"))
        await reader.readuntil(b"\r\n\r\n")
        got = 0
        while length := int(await reader.readline(), 16):
            got += len(await reader.readexactly(length + 2)) - 2
        assert got == size
        writer.close()
    assert pieces > 64
    assert waits < pieces / 4
