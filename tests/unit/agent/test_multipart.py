"""The multipart parser, whatever way the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_agent.filesystem.multipart import MultipartParser, PartBegin, PartData, PartEnd, parameters
from cloche_wire.errors import InvalidArgument

HEADER = 'multipart/form-data; boundary="b-1"'


def _parts(pieces: list[bytes]) -> list[tuple[str, str | None, bytes]]:
    parser = MultipartParser(HEADER)
    parts: list[tuple[str, str | None, bytes]] = []
    for piece in pieces:
        for event in parser.feed(piece):
            match event:
                case PartBegin(name, filename):
                    parts.append((name, filename, b""))
                case PartData(data):
                    parts[-1] = (*parts[-1][:2], parts[-1][2] + data)
                case PartEnd():
                    pass
    parser.close()
    return parts


def _body(contents: list[bytes]) -> bytes:
    body = b"a preamble\r\n"
    for number, content in enumerate(contents):
        disposition = f'form-data; name="n{number}"; filename="f{number}"'
        head = f"--b-1 \r\nContent-Disposition: {disposition}\r\nX: y\r\n\r\n"
        body += head.encode() + content + b"\r\n"
    return body + b"--b-1--\r\nan epilogue"


_content = st.lists(
    st.sampled_from([b"\r\n", b"--", b"b-1", b"\r", b"\n", b"-", b"x" * 40]), max_size=12
).map(b"".join)


@given(st.lists(_content.filter(lambda data: b"\r\n--b-1" not in b"\r\n" + data), max_size=4), st.data())
def test_every_way_of_cutting_gives_the_same_parts(contents: list[bytes], data: st.DataObject) -> None:
    body = _body(contents)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    expected = [(f"n{number}", f"f{number}", content) for number, content in enumerate(contents)]
    assert _parts(pieces) == expected
    assert _parts([bytes([byte]) for byte in body]) == expected


def test_body_is_passed_on_as_it_comes() -> None:
    parser = MultipartParser(HEADER)
    parser.feed(b'--b-1\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n')
    events = parser.feed(bytes(1_000_000))
    assert sum(len(event.data) for event in events if isinstance(event, PartData)) > 999_000


def test_what_holds_no_boundary_is_passed_on_without_a_copy() -> None:
    parser = MultipartParser(HEADER)
    parser.feed(b'--b-1\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n')
    for piece, passed in ((b"x" * 1000, 1000), (b"y" * 998 + b"\r\n", 998)):
        (event,) = parser.feed(piece)
        assert isinstance(event, PartData)
        assert isinstance(event.data, memoryview)
        assert (event.data.obj is piece, len(event.data)) == (True, passed)
    assert parser.feed(b"--b-1--") == [PartEnd()]


@pytest.mark.parametrize(
    "header", ["multipart/form-data", "multipart/form-data; boundary=", 'm; boundary="a\x00"']
)
def test_header_without_boundary_is_refused(header: str) -> None:
    with pytest.raises(InvalidArgument):
        MultipartParser(header)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b-1\r\n",
        b"--b-1x\r\n\r\n",
        b"--b-1\r\nContent-Type: x\r\n\r\nno disposition\r\n--b-1--",
        b"--b-1\r\nX: " + b"y" * 100_000,
        b"--b-1" + b" " * 100_000,
    ],
)
def test_malformed_body_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        _parts([body])


def test_file_names_are_read_in_both_spellings() -> None:
    assert parameters('form-data; name="a"; filename="C:\\\\x \\"y\\";z"') == {
        "name": "a",
        "filename": 'C:\\x "y";z',
    }
    head = (
        b"--b-1\r\ncontent-disposition: form-data; name=file; filename=\"x\"; filename*=UTF-8''%C3%A9\r\n\r\n"
    )
    assert _parts([head, b"\r\n--b-1--"]) == [("file", "é", b"")]
