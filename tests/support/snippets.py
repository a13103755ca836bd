"""Code blocks of a page, with the heading they stand under."""

from pathlib import Path
from typing import NamedTuple


class Snippet(NamedTuple):
    """One fenced block: its number among the blocks of its language, and where it stands."""

    number: int
    heading: str
    line: int
    code: str


def extract(page: Path, language: str) -> list[Snippet]:
    """Every block of the language, in the page's order, to the letter."""
    found: list[Snippet] = []
    heading, fence, start = "", None, 0
    lines = page.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if line.startswith("```"):
            if fence is None:
                fence, start = line[3:].strip(), number
            else:
                if fence == language:
                    found.append(
                        Snippet(len(found) + 1, heading, start + 1, "".join(lines[start : number - 1]))
                    )
                fence = None
        elif fence is None and line.startswith("#"):
            heading = line.lstrip("#").strip()
    return found
