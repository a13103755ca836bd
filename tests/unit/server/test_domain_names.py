"""Names of hosts: one spelling, and lists that match at the border of a label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_server.domain_names import is_listed, normalise, normalise_pattern


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ok.test", "ok.test"),
        ("OK.Test.", "ok.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("localhost", "localhost"),
        ("_dmarc.ok.test", "_dmarc.ok.test"),
        ("ok.test..", None),
        ("", None),
        (".", None),
        ("1.2.3.4", None),
        ("0x7f.1", None),
        ("0x7f000001", None),
        ("a.0x1", None),
        ("2130706433", None),
        ("::1", None),
        ("a b", None),
        ("a..b", None),
        ("-a.test", None),
        ("a" * 64 + ".test", None),
        ("a." * 130 + "test", None),
        ("ok.test\n", None),
        ("ok.test\0.evil.test", None),
        ("*.ok.test", None),
    ],
)
def test_a_name_has_one_spelling_or_is_none(text: str, name: str | None) -> None:
    assert normalise(text) == name


def test_patterns_are_names_or_all_below_one() -> None:
    assert normalise_pattern("*.OK.test.") == "*.ok.test"
    assert [
        normalise_pattern(text) for text in ("*", "*.", "*.test", "a.*.test", "*ok.test", "*.*.ok.test")
    ] == [None] * 6


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("ok.test", True),
        ("xok.test", False),
        ("ok.test.evil.test", False),
        ("a.ok.test", False),
        ("a.wild.test", True),
        ("a.b.wild.test", True),
        ("wild.test", False),
        ("xwild.test", False),
    ],
)
def test_a_list_matches_whole_labels(name: str, listed: bool) -> None:
    assert is_listed(name, ("ok.test", "*.wild.test")) is listed


@given(st.text(max_size=300))
def test_the_one_spelling_is_its_own(text: str) -> None:
    name = normalise(text)
    assert name is None or normalise(name) == name
