"""Pages that lie fail here: links lead somewhere, shown commands are ones we have, verbs are told."""

import re
from pathlib import Path

import pytest
from tests.support.snippets import extract
from tests.support.source import ROOT

from cloche_server.cli.main import VERBS

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "specs" / "COMPATIBILITY.md"])
COMMANDS_RUN = re.compile(
    r"make \w+"  # the Makefile's own targets; see the test below
    r"|cloche (\w+)( .*)?"
    r"|\.venv/bin/python -m pytest .*"
    r'|eval "\$\(cloche (env|tls init)\)"'
    r"|git clone \S+( \S+)?|cd \S+|pip install \S+|python3? .*|export \w+=.*|curl .*"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_shown_command_is_one_we_run(page: Path) -> None:
    lines = [line for snippet in extract(page, "bash") for line in snippet.code.splitlines()]
    commands = [line.split("  #")[0].split(" #")[0].strip() for line in lines]
    unknown = [command for command in commands if command and not command.startswith("#")]
    assert not [command for command in unknown if not COMMANDS_RUN.match(command)]
    verbs = {found[1] for command in commands if (found := re.match(r"cloche (\w+)", command))}
    assert verbs <= set(VERBS)


def test_every_shown_make_target_exists() -> None:
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(page.read_text() for page in PAGES)
    shown = {
        word
        for line in re.findall(r"(?:^|`)make ([a-z][a-z ]*)", text, re.MULTILINE)
        for word in line.split()
    }
    assert shown <= targets


def test_every_verb_of_the_command_line_is_told() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "CHANGELOG.md").read_text()
    assert not [verb for verb in VERBS if f"cloche {verb}" not in text and verb != "quickstart"]


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))]
    assert numbers == list(range(len(numbers)))
