"""The server's name out of TLS: of real clients, in any pieces, and never an accident."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.egress.client_hello import MAX_BYTES, NoName, read_server_name


def hello(name: str | None) -> bytes:
    """What a real client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def records(data: bytes, size: int) -> bytes:
    """The same hello in records of another size."""
    body = data[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(data[:3] + len(piece).to_bytes(2) + piece for piece in pieces)


@pytest.mark.parametrize("size", [1, 3, 100, 1 << 14])
def test_name_is_read_from_every_split_and_not_before_it_is_whole(size: int) -> None:
    data = records(hello("Ok.test"), size)
    assert read_server_name(data) == "Ok.test"
    assert {read_server_name(data[:end]) for end in range(len(data))} == {None}


@pytest.mark.parametrize(
    "data",
    [
        hello(None),
        b"GET / HTTP/1.1\r\n",
        b"\x16\x02\x00\x00\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    ],
)
def test_what_names_nobody_is_refused(data: bytes) -> None:
    with pytest.raises(NoName):
        read_server_name(data)


def test_a_hidden_name_is_refused() -> None:
    """A hello with an encrypted one in it shows a name that need not be the one that is meant."""
    data = bytearray(hello("ok.test"))
    # The last extension, whichever it is, becomes encrypted_client_hello.
    body = bytes(data)
    at = 5 + 4 + 34
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2])
    at += 1 + body[at]
    at += 2
    while at < len(body):
        last, at = at, at + 4 + int.from_bytes(body[at + 2 : at + 4])
    data[last : last + 2] = b"\xfe\x0d"
    with pytest.raises(NoName, match="encrypted"):
        read_server_name(bytes(data))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_name_or_more_is_needed_or_no_name(data: bytes) -> None:
    try:
        read_server_name(data)
    except NoName:
        return


@given(st.integers(0, 600), st.integers(0, 255), st.integers(1, 80))
def test_a_spoilt_hello_is_no_accident(at: int, value: int, size: int) -> None:
    data = bytearray(records(hello("ok.test"), size * 10))
    data[at % len(data)] = value
    try:
        read_server_name(bytes(data))
    except NoName:
        return


def test_no_more_is_kept_than_the_limit() -> None:
    endless = b"\x16\x03\x01\x00\x01\x01" + b"\x16\x03\x01\x00\x02\x00\x00" + b"\x16\x03\x01\x40\x00" * 8000
    with pytest.raises(NoName):
        read_server_name(endless[: MAX_BYTES + 10])
