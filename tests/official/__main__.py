"""Run the official suites and print the table; its arguments are those of tools/official-suites."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.official import suites, trees
from tests.official.suites import SUITES, Run, Suite
from tests.official.verdicts import (
    ISOLATIONS,
    Expectations,
    Figures,
    Verdict,
    dead,
    expectations,
    judge,
    read,
)
from tests.support import capabilities
from tests.support.server import Server

FULL_TEMPLATE = "polyglot"
"""Has the kernels of all languages that the interpreter's suites run."""
DEFAULT_TEMPLATE = "code-interpreter-v1"
IMAGES = f'[builds.images]\n"ubuntu:*" = "{DEFAULT_TEMPLATE}"\n'
"""The suites build from Ubuntu; no registry is asked here, our Debian stands for it."""


def main() -> int:
    """Run what is asked; 0 when everything came out as suites.toml says."""
    options = _options()
    # Whoever ends this, the server is stopped in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    found = trees.find(Path(options.folder))
    chosen = [suite for suite in SUITES if not options.only or suite.name in options.only]
    # Kept, so that its reports can be read; short, since the paths of sockets are.
    scratch = Path(tempfile.mkdtemp(prefix="official-"))
    template = FULL_TEMPLATE if capabilities.missing(FULL_TEMPLATE) is None else DEFAULT_TEMPLATE
    if template == DEFAULT_TEMPLATE:
        print(f"note: no template {FULL_TEMPLATE}: the interpreter's suites run on {DEFAULT_TEMPLATE}")
    state = scratch / "s"
    state.mkdir(mode=0o755)
    (state / "config.toml").write_text(IMAGES)
    server = Server(state, isolation=options.isolation, ahead=8).start()  # as it runs by itself
    figures: list[tuple[Suite, Figures]] = []
    problems: list[str] = []
    seen: dict[str, list[Verdict]] = {}
    try:
        for suite in chosen:
            print(f"running {suite.title} ...", flush=True)
            expected = expectations(suite.data, options.isolation)
            folder = suites.prepare(suite, found, scratch)
            report, log = scratch / f"{suite.name}.xml", scratch / f"{suite.name}.log"
            problem = suites.run(Run(suite, server, folder, expected.skip, report, log, template))
            if problem is not None:
                problems.append(f"{suite.title}: {problem}")
                continue
            verdicts = read(report)
            seen.setdefault(suite.data, []).extend(verdicts)
            figures.append((suite, judge(verdicts, expected)))
    finally:
        server.stop()
    if not options.only:
        problems += _dead(seen, options.isolation)
    for line in _told(figures, problems, options):
        print(line)
    print(f"\nreports and logs: {scratch}")
    return 1 if problems or any(counted.unexpected for _, counted in figures) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/official-suites")
    parser.add_argument("folder", help="holds the two public repositories")
    names = [suite.name for suite in SUITES]
    parser.add_argument("--isolation", choices=ISOLATIONS, default="container", help="that of the server")
    parser.add_argument("--only", action="append", choices=names, help="run this suite; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print what specs/COMPATIBILITY.md shows")
    return parser.parse_args()


def _dead(seen: dict[str, list[Verdict]], isolation: str) -> list[str]:
    return [
        f"suites.toml, {section}: no test fits {pattern}"
        for section, verdicts in seen.items()
        for pattern in dead(verdicts, expectations(section, isolation))
    ]


def _told(
    figures: list[tuple[Suite, Figures]], problems: list[str], options: argparse.Namespace
) -> Iterator[str]:
    yield ""
    yield "| suite | live tests | refused | cloud | counted | passed | known gaps | unexpected |"
    yield "|---|---|---|---|---|---|---|---|"
    for suite, counted in figures:
        row = (suite.title, counted.live, counted.refused, counted.cloud, counted.counted)
        share = f"{counted.passed} ({counted.share:.1f} %)"
        yield f"| {' | '.join(map(str, row))} | {share} | {len(counted.gaps)} | {len(counted.unexpected)} |"
    for suite, counted in figures:
        expected = expectations(suite.data, options.isolation)
        if counted.gaps:
            yield f"\nKnown gaps of {suite.title}:\n"
            yield from _gaps(counted, expected, markdown=options.markdown)
        if counted.unexpected:
            yield f"\nUnexpected in {suite.title}:\n"
            for verdict in counted.unexpected:
                yield f"- {verdict.test}: {verdict.message or 'passes, but is listed'}"
    for problem in problems:
        yield f"\nerror: {problem}"


def _gaps(counted: Figures, expected: Expectations, *, markdown: bool) -> Iterator[str]:
    for verdict in counted.gaps:
        known = expected.of(verdict.test)
        assert known is not None
        yield f"- `{verdict.test}`: {known.reason}" if markdown else f"- {verdict.test}: {known.reason}"


if __name__ == "__main__":
    os.umask(0o022)
    raise SystemExit(main())
