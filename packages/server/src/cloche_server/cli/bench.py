"""`cloche bench`: what a user waits for, through the official client, beside what the bare machine takes.

Each figure and its baseline are sampled in turn (ABAB), so that a busy moment of the machine hits both.
Nothing is trimmed; the first three rounds warm up and are dropped; a failure is counted and never taken for
a fast answer.

The two workers lie in `benchmarks/` of the source tree: the client's runs under its own interpreter, because
the official packages and ours cannot share one.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import click
import msgspec
from rich.console import Console
from rich.table import Table

from cloche_server import config as configuration
from cloche_server.cli import env
from cloche_server.cli.lock import RunningServer, running_server
from cloche_server.cli.output import explain, state_option
from cloche_server.config import Config
from cloche_server.templates import manifest, recipe
from cloche_wire.errors import InvalidArgument, NotFound

MIN_WIDTH = 100
WARM_UPS = 3
SOURCE_TREE = Path(__file__).resolve().parents[5]


class Measure(NamedTuple):
    """One figure, its baseline on the bare machine, and whether each sample takes a new client process."""

    name: str
    baseline: str
    new_client: bool = False


MEASURES = (
    Measure("create_warm", "crun_true"),
    Measure("create_cold", "crun_true", new_client=True),
    Measure("first_run_code", "python_import"),
    Measure("run_code_hot", "python_pass"),
    Measure("exec_echo", "bash_echo"),
)


class Samples(msgspec.Struct):
    """What was measured of one thing, in milliseconds, in the order it was measured."""

    ms: list[float] = []
    failures: list[str] = []

    def percentile(self, share: float) -> float:
        """The smallest sample that at least `share` of all do not exceed; NaN without samples."""
        if not self.ms:
            return math.nan
        return sorted(self.ms)[max(0, math.ceil(len(self.ms) * share) - 1)]


class Figure(msgspec.Struct):
    """A measured thing beside its baseline."""

    name: str
    baseline: str
    samples: Samples
    baseline_samples: Samples


class Report(msgspec.Struct):
    """Everything of one run, raw samples included, so that anybody can compute something else from it."""

    measured_at: str
    isolation: str
    kernel: str
    cpus: int
    client: str
    rounds: int
    figures: list[Figure]


class _Answer(msgspec.Struct):
    """One line of a worker."""

    ms: float | None = None
    error: str = ""


class Worker:
    """A process that does one act for each line it is sent."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin, "opened above"
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout, "opened above"
        self._process.stdout.close()

    def measure(self, act: str, into: Samples) -> None:
        """Have it do the act once, and keep how long that took, or why it failed."""
        assert self._process.stdin, "opened above"
        assert self._process.stdout, "opened above"
        try:
            self._process.stdin.write(f"{act}\n")
            answer = msgspec.json.decode(self._process.stdout.readline(), type=_Answer)
        except (BrokenPipeError, msgspec.DecodeError):
            answer = _Answer(error=f"the worker ended with {self._process.wait(timeout=10)}")
        if answer.ms is not None:
            into.ms.append(answer.ms)
        else:
            into.failures.append(answer.error)


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
        report = _run(
            config, server, chosen, samples, client or SOURCE_TREE / ".venv-compat" / "bin" / "python"
        )
    _show(report)
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if any(figure.samples.failures for figure in report.figures):
        sys.exit(1)


def _run(config: Config, server: RunningServer, chosen: list[Measure], samples: int, client: Path) -> Report:
    figures = [Figure(measure.name, measure.baseline, Samples(), Samples()) for measure in chosen]
    official, bare = _commands(config, client)
    client_env = _client_env(config, server)
    with ExitStack() as stack:
        hot = stack.enter_context(Worker(official, client_env))
        machine = stack.enter_context(Worker(bare, dict(os.environ)))
        for turn in range(WARM_UPS + samples):
            for measure, figure in zip(chosen, figures, strict=True):
                if measure.new_client:
                    with Worker(official, client_env) as fresh:
                        fresh.measure(measure.name, figure.samples)
                else:
                    hot.measure(measure.name, figure.samples)
                machine.measure(measure.baseline, figure.baseline_samples)
            if turn == WARM_UPS - 1:
                _forget(figures)
    return Report(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        isolation=server.isolation,
        kernel=platform.release(),
        cpus=os.cpu_count() or 0,
        client=_client_version(client),
        rounds=samples,
        figures=figures,
    )


def _forget(figures: list[Figure]) -> None:
    """Drop the warm-ups' times; their failures stay, for a failure is never an outlier."""
    for figure in figures:
        figure.samples.ms.clear()
        figure.baseline_samples.ms.clear()


def _commands(config: Config, client: Path) -> tuple[list[str], list[str]]:
    """Argument lists of the two workers.

    Raises:
        NotFound: The source tree, the client's environment or the template is not there.
    """
    folder = SOURCE_TREE / "benchmarks"
    if not (folder / "official_client.py").exists():
        raise NotFound(f"no benchmarks here: {folder}", hint="run it from a source tree")
    if not client.exists():
        raise NotFound(f"no environment with the official client: {client}", hint="make bench")
    if os.geteuid() != 0:
        raise InvalidArgument("the baselines need root", hint="run it with sudo")
    template = manifest.newest(config.templates_dir, recipe.TEMPLATE_ID)
    if template is None:
        raise NotFound("the default template is not built", hint="make setup")
    rootfs = config.templates_dir / template.build_id / template.rootfs
    own_mounts = ["unshare", "--mount", "--propagation", "private"]
    bare = [*own_mounts, sys.executable, str(folder / "bare_machine.py"), str(rootfs)]
    return [str(client), str(folder / "official_client.py")], bare


def _client_env(config: Config, server: RunningServer) -> dict[str, str]:
    """What the official client has to be told; nothing of our own environment that could change it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "PYTHON"))}
    return kept | env.variables(config, server)


def _client_version(client: Path) -> str:
    names = "('e2b', 'e2b-code-interpreter')"
    code = f"import importlib.metadata as m; print(*[n + ' ' + m.version(n) for n in {names}])"
    done = subprocess.run([str(client), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _show(report: Report) -> None:
    title = f"isolation {report.isolation}, kernel {report.kernel}, {report.cpus} cpus, {report.client}"
    table = Table(
        title=title, caption="milliseconds, nothing trimmed; baselines on the bare machine, interleaved"
    )
    for name in ("", "p50", "p95", "p99", "failed", "baseline", "p50", "p95", "ratio"):
        table.add_column(name, justify="left" if name in ("", "baseline") else "right")
    for figure in report.figures:
        own, bare = figure.samples, figure.baseline_samples
        times = [f"{own.percentile(share):.1f}" for share in (0.5, 0.95, 0.99)]
        base = [f"{bare.percentile(share):.1f}" for share in (0.5, 0.95)]
        ratio = f"{own.percentile(0.5) / bare.percentile(0.5):.2f}"
        table.add_row(figure.name, *times, str(len(own.failures)), figure.baseline, *base, ratio)
    Console(width=max(Console().width, MIN_WIDTH)).print(table)  # a name cut short names nothing
    for figure in report.figures:
        for failure in dict.fromkeys([*figure.samples.failures, *figure.baseline_samples.failures]):
            click.echo(f"{figure.name}: {failure}", err=True)
