"""A web service for the inside of a sandbox: a page with script, server-sent events, a WebSocket, uploads.

Its page says what it has seen, which is then in the file `/tmp/seen`. Standard library only: it runs in any
template.
"""

import asyncio
import base64
import hashlib
import sys
from pathlib import Path

PAGE = b"""<!doctype html><title>service</title><script>
const socket = new WebSocket(`wss://${location.host}/echo`)
socket.onopen = () => socket.send('over the socket')
const echoed = new Promise((done, fail) => { socket.onmessage = (m) => done(m.data); socket.onerror = fail })
const ticks = new Promise((done, fail) => {
  const got = [], source = new EventSource('/events')
  source.onmessage = (e) => { got.push(e.data); if (got.length === 3) { source.close(); done(got.join()) } }
  source.onerror = fail
})
const sent = fetch('/upload', { method: 'PUT', body: new Uint8Array(5e6) }).then((r) => r.text())
Promise.all([echoed, ticks, sent])
  .then((all) => all.join(' | '), (error) => `failed: ${error}`)
  .then((seen) => fetch('/done', { method: 'POST', body: seen }))
</script>"""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, or speak as a WebSocket, and close the connection."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = head.split("\r\n", 1)[0].split(" ")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        key = next(
            (line.split(": ", 1)[1] for line in head.split("\r\n") if "websocket-key" in line.lower()), ""
        )
        match target:
            case "/echo":
                await echo(reader, writer, key)
            case "/events":
                await events(writer)
            case "/upload":
                await answer(writer, b"text/plain", b"%d bytes" % await count(reader, fields))
            case "/done":
                told = await reader.readexactly(int(fields["content-length"]))
                await asyncio.to_thread(Path("/tmp/seen").write_bytes, told)
                await answer(writer, b"text/plain", b"")
            case "/host":
                await answer(writer, b"text/plain", fields.get("host", "").encode())
            case _:
                await answer(writer, b"text/html", PAGE if method == "GET" else b"")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(writer: asyncio.StreamWriter, kind: bytes, body: bytes) -> None:
    """One whole answer."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    writer.write(head % (kind, len(body)) + body)
    await writer.drain()


async def count(reader: asyncio.StreamReader, fields: dict[str, str]) -> int:
    """Bytes of a body, by its length or in chunks; never more than a piece of it in memory."""
    total = 0
    if "content-length" in fields:
        left = int(fields["content-length"])
        while left:
            left -= len(piece := await reader.read(min(left, 1 << 16)))
            total += len(piece)
        return total
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
        total += size
    await reader.readline()
    return total


async def events(writer: asyncio.StreamWriter) -> None:
    """Three events, each sent as soon as it is there."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    for number in range(3):
        writer.write(b"data: tick%d\n\n" % number)
        await writer.drain()
        await asyncio.sleep(0.2)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
    """A WebSocket (RFC 6455) that returns each short text message."""
    digest = hashlib.sha1(key.strip().encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(head + b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n")
    while True:
        kind, size = await reader.readexactly(2)
        mask = await reader.readexactly(4)
        text = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(size & 0x7F)))
        if kind & 0x0F != 1:
            return
        writer.write(bytes([0x81, len(text)]) + text)
        await writer.drain()


async def main() -> None:
    """Serve on the port that is named."""
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
