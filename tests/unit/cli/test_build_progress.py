"""What a build shows: plain lines where nobody looks, and on a terminal how long each step has taken."""

import io

from rich.console import Console

from cloche_server.cli.build_progress import BuildProgress

LOG = [
    ("info", "base", "FROM base"),
    ("info", "1", "[1/2] CACHED RUN [bold]first[/]"),
    ("info", "2", "[stage x 2/2] RUN second"),
    ("warn", "2", "its output"),
    ("info", "finalize", "Finalizing the template"),
]


def shown(*, is_terminal: bool) -> str:
    times = iter([10.0, 12.5])
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=60, color_system=None)
    with BuildProgress(console, lambda: next(times)) as progress:
        for level, step, message in LOG:
            progress.show({"level": level, "step": step, "message": message})
    return out.getvalue()


def test_what_is_no_terminal_gets_the_log_and_nothing_else() -> None:
    assert shown(is_terminal=False) == "".join(f"{message}\n" for *_, message in LOG)


def test_a_terminal_sees_how_long_a_step_took_and_which_one_runs() -> None:
    text = shown(is_terminal=True)
    assert "its output" in text
    assert text.count("took") == 1
    assert text.index("its output") < text.index("  took 2.5 s") < text.index("Finalizing the template")
    assert "[bold]first[/]" in text
