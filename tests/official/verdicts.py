"""What came out of a suite: its JUnit report, and what suites.toml expects of each test."""

import tomllib
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

DATA = Path(__file__).with_name("suites.toml")
KINDS = ("mock", "refused", "cloud", "gap")
ISOLATIONS = ("container", "gvisor")


class Outcome(Enum):
    """How one test ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Verdict(NamedTuple):
    """One test: `file::name`, how it ended, and the first line of what went wrong."""

    test: str
    outcome: Outcome
    message: str


class Known(NamedTuple):
    """What is known of a group of tests before they run."""

    kind: str
    """`mock`: speaks to no server; `refused`: asks for what this isolation cannot do, and is told so;
    `cloud`: needs the vendor's cloud or the outside internet; `gap`: ours to mend, and known."""
    pattern: str
    reason: str


class Expectations(NamedTuple):
    """One section of suites.toml."""

    skip: tuple[str, ...]
    known: tuple[Known, ...]

    def of(self, test: str) -> Known | None:
        """Return what is known of a test; the first pattern that fits counts."""
        return next((known for known in self.known if fnmatchcase(test, known.pattern)), None)


class Figures(NamedTuple):
    """A suite in numbers and names."""

    live: int
    refused: int
    cloud: int
    passed: int
    gaps: tuple[Verdict, ...]
    unexpected: tuple[Verdict, ...]
    """Failures that no gap names, gaps that pass, and what is not refused by its reason."""

    @property
    def counted(self) -> int:
        """Live tests that this server should pass."""
        return self.live - self.refused - self.cloud

    @property
    def share(self) -> float:
        """Passed of the counted ones, in percent."""
        return 100 * self.passed / self.counted if self.counted else 0.0


def expectations(section: str, isolation: str, data: Path = DATA) -> Expectations:
    """Read one section of suites.toml, as it is for a server of this isolation.

    Raises:
        KeyError: No such section.
    """
    table = tomllib.loads(data.read_text())[section]
    known = [
        Known(kind, pattern, reason)
        for holds in (table.get(isolation, {}), table)
        for kind in KINDS
        for pattern, reason in holds.get(kind, {}).items()
    ]
    return Expectations(tuple(table.get("skip", ())), tuple(known))


def read(report: Path) -> list[Verdict]:
    """Read a JUnit report of pytest or vitest; tests of one name are told apart by `#2`, `#3`."""
    seen: Counter[str] = Counter()
    verdicts: list[Verdict] = []
    for case in ElementTree.parse(report).iter("testcase"):
        name = _name(case)
        seen[name] += 1
        outcome, message = _ended(case)
        verdicts.append(Verdict(name if seen[name] == 1 else f"{name}#{seen[name]}", outcome, message))
    return verdicts


def judge(verdicts: Iterable[Verdict], expected: Expectations) -> Figures:
    """Count, and name what differs from what is expected. A test that skips itself is not counted."""
    live = refused = cloud = passed = 0
    gaps: list[Verdict] = []
    unexpected: list[Verdict] = []
    for verdict in verdicts:
        known = expected.of(verdict.test)
        kind = known.kind if known else None
        if kind == "mock" or verdict.outcome is Outcome.SKIPPED:
            continue
        live += 1
        if known is not None and kind == "refused":
            refused += 1
            if verdict.outcome is Outcome.PASSED or known.reason not in verdict.message:
                unexpected.append(verdict)
        elif kind == "cloud":
            cloud += 1
        elif verdict.outcome is Outcome.PASSED:
            passed += 1
            if kind == "gap":
                unexpected.append(verdict)
        else:
            (gaps if kind == "gap" else unexpected).append(verdict)
    return Figures(live, refused, cloud, passed, tuple(gaps), tuple(unexpected))


def dead(verdicts: Iterable[Verdict], expected: Expectations) -> list[str]:
    """Return patterns that no test fits: they tell of tests that are gone or renamed."""
    tests = [verdict.test for verdict in verdicts]
    used = {known.pattern for test in tests if (known := expected.of(test))}
    return [known.pattern for known in expected.known if known.pattern not in used]


def _name(case: ElementTree.Element) -> str:
    group = case.get("classname", "")
    file = case.get("file")
    if file is None:  # vitest: the group is the file
        return f"{group.removeprefix('tests/')}::{case.get('name')}"
    # pytest: the group is the dotted module, and the class if there is one.
    of_class = group.removeprefix(file.removesuffix(".py").replace("/", ".")).lstrip(".")
    parts = [file.removeprefix("tests/"), *of_class.split("."), case.get("name", "")]
    return "::".join(part for part in parts if part)


def _ended(case: ElementTree.Element) -> tuple[Outcome, str]:
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            return Outcome.FAILED, _first_line(found)
    return (Outcome.PASSED if case.find("skipped") is None else Outcome.SKIPPED), ""


def _first_line(failure: ElementTree.Element) -> str:
    text = f"{failure.get('message') or ''}\n{failure.text or ''}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("E ").strip() for line in lines if line.startswith("E ")]
    return (told or lines or [""])[0][:300]
