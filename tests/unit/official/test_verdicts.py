"""What a run of the official suites says: counted by kind, and any difference from suites.toml is told."""

import tomllib
from pathlib import Path

import pytest
from tests.official.suites import SUITES
from tests.official.verdicts import (
    DATA,
    ISOLATIONS,
    KINDS,
    Expectations,
    Known,
    Outcome,
    Verdict,
    dead,
    expectations,
    judge,
    read,
)
from tests.support.source import ROOT

EXPECTED = Expectations(
    (),
    (
        Known("mock", "mock.py::*", "patches the client"),
        Known("refused", "a.py::test_pause*", "cannot pause"),
        Known("cloud", "a.py::test_internet", "a public web site"),
        Known("gap", "a.py::test_gap*", "not yet"),
    ),
)


def ended(name: str, outcome: Outcome) -> Verdict:
    return Verdict(name, outcome, "400: cannot pause here" if "pause" in name else "")


def test_only_live_tests_of_now_are_counted() -> None:
    names = ["mock.py::test_x", "a.py::test_pause", "a.py::test_internet", "a.py::test_gap", "a.py::test_it"]
    figures = judge(
        [ended(name, Outcome.FAILED) for name in names[:4]] + [ended(names[4], Outcome.PASSED)], EXPECTED
    )
    assert (figures.live, figures.refused, figures.cloud, figures.counted, figures.passed) == (4, 1, 1, 2, 1)
    assert [verdict.test for verdict in figures.gaps] == ["a.py::test_gap"]
    assert not figures.unexpected
    assert figures.share == 50.0


def test_a_gap_that_passes_is_unexpected() -> None:
    figures = judge([ended("a.py::test_gap", Outcome.PASSED)], EXPECTED)
    assert [verdict.test for verdict in figures.unexpected] == ["a.py::test_gap"]


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict("a.py::test_pause", Outcome.PASSED, ""),
        Verdict("a.py::test_pause", Outcome.FAILED, "500: internal error"),
    ],
)
def test_what_is_not_refused_by_its_reason_is_unexpected(verdict: Verdict) -> None:
    figures = judge([verdict], EXPECTED)
    assert (figures.unexpected, figures.counted) == ((verdict,), 0)


def test_a_failure_that_nobody_listed_is_unexpected() -> None:
    figures = judge([ended("a.py::test_it", Outcome.FAILED)], EXPECTED)
    assert [verdict.test for verdict in figures.unexpected] == ["a.py::test_it"]
    assert figures.passed == 0


def test_a_test_that_skips_itself_is_not_counted() -> None:
    assert judge([ended("a.py::test_it", Outcome.SKIPPED)], EXPECTED).live == 0


def test_patterns_that_fit_nothing_are_told() -> None:
    verdicts = [ended("a.py::test_gap_1", Outcome.FAILED), ended("mock.py::test_x", Outcome.PASSED)]
    assert dead(verdicts, EXPECTED) == ["a.py::test_pause*", "a.py::test_internet"]


def test_reports_of_pytest_and_vitest_are_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase file="tests/s/test_a.py" classname="tests.s.test_a.TestB" name="test_one">'
        '<failure message="boom">\nE   AssertionError: one\n</failure></testcase></testsuite>'
        '<testsuite><testcase classname="tests/b.test.ts" name="group &gt; two"/>'
        '<testcase classname="tests/b.test.ts" name="group &gt; two"><skipped/></testcase></testsuite>'
        "</testsuites>"
    )
    assert read(report) == [
        Verdict("s/test_a.py::TestB::test_one", Outcome.FAILED, "AssertionError: one"),
        Verdict("b.test.ts::group > two", Outcome.PASSED, ""),
        Verdict("b.test.ts::group > two#2", Outcome.SKIPPED, ""),
    ]


@pytest.mark.parametrize("section", sorted({suite.data for suite in SUITES}))
def test_each_section_has_reasons_and_known_kinds_only(section: str) -> None:
    table = tomllib.loads(DATA.read_text())[section]
    assert table.keys() <= {"skip", *KINDS, *ISOLATIONS}
    for isolation in ISOLATIONS:
        assert table.get(isolation, {}).keys() <= set(KINDS)
        assert all(known.reason for known in expectations(section, isolation).known)


def test_what_holds_for_one_isolation_comes_before_what_holds_for_all(tmp_path: Path) -> None:
    data = tmp_path / "suites.toml"
    data.write_text('[x.gap]\n"a::*" = "not yet"\n[x.container.refused]\n"a::pause" = "pausing"\n')
    kinds = {name: expectations("x", name, data).of("a::pause") for name in ISOLATIONS}
    assert [known.kind for known in kinds.values() if known] == ["refused", "gap"]


def test_the_page_names_every_gap() -> None:
    page = (ROOT / "specs" / "COMPATIBILITY.md").read_text()
    known = [
        known
        for suite in SUITES
        for isolation in ISOLATIONS
        for known in expectations(suite.data, isolation).known
    ]
    assert not [one.pattern for one in known if one.kind == "gap" and one.pattern not in page]
