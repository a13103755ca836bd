"""Messages of name servers: questions we make, answers that anybody may have made."""

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.resolvers import question_for, read_addresses, read_name

QUESTION = question_for("ok.test", 7)


def record(data: bytes, kind: int = 1, name: bytes = b"\xc0\x0c") -> bytes:
    return name + struct.pack(">2HIH", kind, 1, 0, len(data)) + data


def answer(*records: bytes, flags: int = 0x8180, number: int = 7, question: bytes = QUESTION) -> bytes:
    return struct.pack(">6H", number, flags, 1, len(records), 0, 0) + question[12:] + b"".join(records)


def test_addresses_are_read_behind_aliases() -> None:
    alias = record(b"\x01a\xc0\x0c", kind=5)
    found = read_addresses(QUESTION, answer(alias, record(bytes((1, 2, 3, 4))), record(b"12345678", kind=28)))
    assert found == [IPv4Address("1.2.3.4")]
    spelt_out = record(bytes((1, 2, 3, 5)), name=b"\x02ok\x04test\x00")
    assert read_addresses(QUESTION, answer(spelt_out)) == [IPv4Address("1.2.3.5")]


@pytest.mark.parametrize(
    "wrong",
    [
        answer(record(b"1234"), number=8),
        answer(record(b"1234"), flags=0x8183),
        answer(record(b"1234"), flags=0x0100),
        answer(record(b"1234"), question=question_for("no.test", 7)),
        answer(record(b"123")),
        answer(record(b"1234"))[:-2],
        b"",
    ],
)
def test_what_is_no_answer_has_no_addresses(wrong: bytes) -> None:
    assert read_addresses(QUESTION, wrong) == []


@given(st.binary(max_size=200))
def test_any_records_are_no_accident(records: bytes) -> None:
    read_addresses(QUESTION, answer()[:6] + b"\0\xff" + answer()[8:] + records)


@given(st.binary(min_size=12, max_size=200))
def test_any_question_has_a_name_or_none(question: bytes) -> None:
    read_name(question)


def test_the_name_of_a_question_is_read_as_it_was_spelt() -> None:
    assert read_name(question_for("a.Ok.test", 1)) == "a.Ok.test"
    assert read_name(QUESTION[:12] + b"\xc0\x0c\0\1\0\1") is None
    assert read_name(QUESTION[:12] + b"\x03a.b\0\0\1\0\1") is None
