"""A stream that nobody follows any more ends at once, not whenever garbage is collected."""

import gc
import weakref
from collections.abc import Iterator

import httpx
import pytest

from cloche._config import Connection
from cloche._requests import SandboxRecord
from cloche._sync.client import Client, MessageStream, Session
from cloche_wire import connect
from cloche_wire.messages.process import StartResponse


@pytest.fixture
def without_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Source(httpx.SyncByteStream):
    """A body of two messages that tells when it is hung up on."""

    def __init__(self) -> None:
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield connect.encode_envelope(0, b'{"event":{"start":{"pid":7}}}')
        yield connect.encode_envelope(0, b'{"event":{"keepalive":{}}}')

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.usefixtures("without_collections")
def test_an_abandoned_stream_is_hung_up_without_a_garbage_collection() -> None:
    source = Source()
    client = Client(Connection(api_key="k"))
    session = Session(client, SandboxRecord("isandbox", "token", "example.test", None))
    stream = MessageStream(session, httpx.Response(200, stream=source), StartResponse)
    assert next(iter(stream)).event is not None
    gone = weakref.ref(stream)
    del stream
    assert gone() is None
    assert source.is_closed
