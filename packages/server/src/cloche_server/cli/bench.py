"""`cloche bench`: what a user waits for, through the official client, beside what it takes without us.

Each figure and its baseline are sampled in turn (ABAB), so that a busy moment of the machine hits both.
Nothing is trimmed; the first three rounds warm up and are dropped; a failure is counted and never taken for
a fast answer.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from cloche_server import config as configuration
from cloche_server.cli.bench_measures import MEASURES, Figure, Measure, Report, Samples, Where
from cloche_server.cli.bench_workers import SOURCE_TREE, Worker, Workers
from cloche_server.cli.lock import running_server
from cloche_server.cli.output import explain, state_option

MIN_WIDTH = 110
WARM_UPS = 3


@click.command()
@state_option
@click.option(
    "--only", multiple=True, type=click.Choice([measure.name for measure in MEASURES]), help="Only this."
)
@click.option(
    "--samples", default=30, show_default=True, type=click.IntRange(1), help="Samples of each figure."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all samples to it."
)
@click.option("--client", type=click.Path(path_type=Path), help="Python that has the official client.")
def bench(
    state: str | None, only: tuple[str, ...], samples: int, json_file: Path | None, client: Path | None
) -> None:
    """Measure the running server through the official client."""
    with explain():
        config = configuration.load({"state": state})
        chosen = [measure for measure in MEASURES if not only or measure.name in only]
        server = running_server(config.state_dir)
        workers = Workers(config, server, client or SOURCE_TREE / ".venv-compat" / "bin" / "python")
        load = os.getloadavg()[0]
        figures = _run(workers, chosen, samples)
    report = Report(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        isolation=server.isolation,
        kernel=platform.release(),
        cpus=os.cpu_count() or 0,
        load=load,
        client=workers.client_version(),
        rounds=samples,
        figures=figures,
    )
    _show(report)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if any(figure.samples.failures for figure in report.figures):
        sys.exit(1)


def _run(workers: Workers, chosen: list[Measure], samples: int) -> list[Figure]:
    figures = [
        Figure(one.name, one.baseline, one.where.value, one.megabytes, Samples(), Samples()) for one in chosen
    ]
    with ExitStack() as stack:
        hot = stack.enter_context(workers.official())
        baselines = {Where.SERVER: hot}
        for where, start in ((Where.STUB, workers.floor), (Where.MACHINE, workers.machine)):
            if any(measure.where is where for measure in chosen):
                baselines[where] = stack.enter_context(start())
        for turn in range(WARM_UPS + samples):
            for measure, figure in zip(chosen, figures, strict=True):
                if turn % measure.every:
                    continue
                _sample(measure, figure, hot, workers)
                baselines[measure.where].measure(measure.baseline, figure.baseline_samples)
            if turn == WARM_UPS - 1:
                _forget(figures)
    return figures


def _sample(measure: Measure, figure: Figure, hot: Worker, workers: Workers) -> None:
    if measure.new_client:
        with workers.official() as fresh:
            fresh.measure(measure.name, figure.samples)
    else:
        hot.measure(measure.name, figure.samples)


def _forget(figures: list[Figure]) -> None:
    """Drop the warm-ups' times; their failures stay, for a failure is never an outlier."""
    for figure in figures:
        figure.samples.ms.clear()
        figure.baseline_samples.ms.clear()


def _show(report: Report) -> None:
    title = (
        f"isolation {report.isolation}, kernel {report.kernel}, {report.cpus} cpus, "
        f"load {report.load:.1f}, {report.client}"
    )
    caption = "nothing trimmed; baselines interleaved; ratio: median times, 1 is as fast as the baseline"
    table = Table(title=title, caption=caption)
    for name in ("", "unit", "p50", "p95", "p99", "failed", "baseline", "p50", "p95", "ratio"):
        table.add_column(name, justify="left" if name in ("", "unit", "baseline") else "right")
    for figure in report.figures:
        own = [figure.shown(figure.samples, share) for share in (0.5, 0.95, 0.99)]
        base = [figure.shown(figure.baseline_samples, share) for share in (0.5, 0.95)]
        is_floor = figure.measured_by == Where.STUB.value
        baseline = "client alone" if is_floor else figure.baseline
        failed = str(len(figure.samples.failures))
        table.add_row(figure.name, figure.unit, *own, failed, baseline, *base, f"{figure.ratio:.2f}")
    Console(width=max(Console().width, MIN_WIDTH)).print(table)  # a name cut short names nothing
    for figure in report.figures:
        for failure in dict.fromkeys([*figure.samples.failures, *figure.baseline_samples.failures]):
            click.echo(f"{figure.name}: {failure}", err=True)
