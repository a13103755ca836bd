"""How `cloche bench` shows a report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from cloche_server.cli.bench_measures import Where

if TYPE_CHECKING:
    from cloche_server.cli.bench_measures import Beside, Figure, Report, Samples, Unit

MIN_WIDTH = 140
_SHARES = (0.5, 0.95, 0.99)
_NUMBERS = ("n", "p50", "p95", "p99", "failed")


def show(report: Report) -> None:
    """Print it, and what failed to the standard error."""
    console = Console(width=max(Console().width, MIN_WIDTH))  # a name cut short names nothing
    console.print(_table(report))
    for absent in report.absent:
        console.print(f"{absent.name}: {absent.reason}", highlight=False)
    for name, failure in dict.fromkeys(_failures(report)):
        click.echo(f"{name}: {failure}", err=True)


def _table(report: Report) -> Table:
    machine = report.machine
    title = (
        f"isolation {report.isolation}, kernel {machine.kernel}, {machine.cpus} cpus, "
        f"load {machine.load[0]:.1f}, {report.client}, crowd {report.crowd}"
    )
    caption = "nothing trimmed; baselines interleaved; ratio: median costs, 1 is as good as the baseline"
    table = Table(title=title, caption=caption)
    columns = ("", "unit", *_NUMBERS, "baseline", *_NUMBERS, "ratio")
    for name in columns:
        table.add_column(name, justify="right" if name in (*_NUMBERS, "ratio") else "left", no_wrap=True)
    for figure in report.figures:
        own = [figure.name, figure.unit.shown, *_numbers(figure.samples, figure.unit)]
        for baseline in figure.baselines or [None]:
            table.add_row(*own, *(_beside(figure, baseline) if baseline else ()))
            own = [""] * len(own)  # said once
    return table


def _numbers(samples: Samples, unit: Unit) -> list[str]:
    percentiles = [unit.show(samples.percentile(share)) for share in _SHARES]
    return [str(len(samples.costs)), *percentiles, str(len(samples.failures))]


def _beside(figure: Figure, baseline: Beside) -> list[str]:
    name = "client alone" if baseline.where == Where.STUB.value else baseline.act
    ratio = figure.ratio(baseline)
    return [name, *_numbers(baseline.samples, figure.unit), "-" if math.isnan(ratio) else f"{ratio:.2f}"]


def _failures(report: Report) -> list[tuple[str, str]]:
    every = [(figure.name, figure.samples) for figure in report.figures]
    every += [(beside.act, beside.samples) for figure in report.figures for beside in figure.baselines]
    return [(name, failure) for name, samples in every for failure in samples.failures]
