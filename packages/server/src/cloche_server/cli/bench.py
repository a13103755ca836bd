"""`cloche bench`: what a user waits for, through the official client, beside what it takes without us.

Each figure and its baselines are sampled in turn (ABAB), so that a busy moment of the machine hits both.
Nothing is trimmed; the first three rounds warm up and are dropped; a failure is counted and never taken for
a fast answer.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from cloche_server import config as configuration
from cloche_server.cli import bench_machine, bench_rounds, bench_table
from cloche_server.cli.bench_measures import MEASURES, Absent, Measure, Report
from cloche_server.cli.bench_workers import SOURCE_TREE, Workers
from cloche_server.cli.lock import running_server
from cloche_server.cli.output import explain, state_option

NAMES = [measure.name for measure in MEASURES]


@click.command()
@state_option
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Only this.")
@click.option(
    "--samples", default=30, show_default=True, type=click.IntRange(1), help="Samples of each figure."
)
@click.option(
    "--crowd",
    type=click.IntRange(1),
    help="Sandboxes alive for density and create_many.  [default: what fits, at most 100]",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write all samples to it."
)
@click.option("--client", type=click.Path(path_type=Path), help="Python that has the official client.")
def bench(
    state: str | None,
    only: tuple[str, ...],
    samples: int,
    crowd: int | None,
    json_file: Path | None,
    client: Path | None,
) -> None:
    """Measure the running server through the official client."""
    with explain():
        config = configuration.load({"state": state})
        server = running_server(config.state_dir)
        machine = bench_machine.describe()
        crowd = crowd or bench_machine.crowd(config, machine.available_mib)
        client = client or SOURCE_TREE / ".venv-compat" / "bin" / "python"
        workers = Workers(config, server, client, samples, crowd)
        chosen, absent = choose(workers, only, server.isolation)
        machine.pythons = workers.pythons()
        report = Report(
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            isolation=server.isolation,
            machine=machine,
            client=workers.client_version(),
            rounds=samples,
            crowd=crowd,
            figures=bench_rounds.run(workers, chosen, samples, _tell),
            absent=absent,
        )
    bench_table.show(report)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if any(figure.samples.failures for figure in report.figures):
        sys.exit(1)


def _tell(what: str) -> None:
    if sys.stderr.isatty():
        click.echo(what, err=True)


def choose(workers: Workers, only: tuple[str, ...], isolation: str) -> tuple[list[Measure], list[Absent]]:
    """What to measure, with baselines that can be done here; what there will be no figure of, and why."""
    asked = [measure for measure in MEASURES if not only or measure.name in only]
    measures = [measure for measure in asked if measure.isolation in ("", isolation)]
    wanted = {baseline.program for measure in measures for baseline in measure.baselines} - {""}
    lacking = {program: reason for program in sorted(wanted) if (reason := workers.lacks(program))}
    chosen = [
        measure._replace(baselines=tuple(one for one in measure.baselines if one.program not in lacking))
        for measure in measures
    ]
    absent = [
        Absent(measure.name, f"not available: isolation is {isolation}, and {measure.isolation} can do it")
        for measure in asked
        if measure not in measures
    ]
    absent += [Absent(f"baseline {program}", reason) for program, reason in lacking.items()]
    return chosen, absent
