"""What all commands share: how errors are shown, and the options that mean the same everywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

from cloche_wire.errors import ClocheError

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def explain() -> Generator[None]:
    """Show an error as one sentence and advice on a line below, exit with status 1; bugs look like bugs."""
    try:
        yield
    except ClocheError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        # What the machine refuses: no right to make namespaces, a file system that has gone read-only.
        print(f"error: {error}", file=sys.stderr)
        print("hint: see `cloche doctor`", file=sys.stderr)
        sys.exit(1)


def note(text: str) -> None:
    """Print one line at once, also into a pipe."""
    print(text, flush=True)


def state_option(function: F) -> F:
    """Add `--state`."""
    import click  # the supervisor speaks too, and has no options to read

    return click.option(
        "--state",
        type=click.Path(file_okay=False),
        help="Folder that holds everything of one server.  [default: $CLOCHE_STATE or /var/lib/cloche]",
    )(function)


def is_root() -> bool:
    """Whether this process may do everything."""
    return os.geteuid() == 0
