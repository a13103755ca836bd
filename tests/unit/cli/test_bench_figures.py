"""What `cloche bench` makes of its samples."""

from __future__ import annotations

from cloche_server.cli.bench_measures import DATA_MB, MEASURES, Figure, Samples


def figure(own: list[float], baseline: list[float], megabytes: float = 0) -> Figure:
    return Figure("x", "y", "", megabytes, Samples(own), Samples(baseline))


def test_a_percentile_is_a_sample_and_nothing_is_trimmed() -> None:
    samples = Samples([float(ms) for ms in range(100, 0, -1)])
    assert [samples.percentile(share) for share in (0.5, 0.95, 0.99, 1)] == [50, 95, 99, 100]


def test_the_p95_of_a_rate_is_what_95_of_100_reach() -> None:
    rates = figure([250.0] * 94 + [1000.0] * 6, [100.0], megabytes=DATA_MB)
    assert rates.unit == "MB/s"
    assert (rates.shown(rates.samples, 0.5), rates.shown(rates.samples, 0.95)) == ("400", "100")


def test_a_ratio_compares_times_also_where_rates_are_shown() -> None:
    assert figure([30.0], [10.0], megabytes=DATA_MB).ratio == figure([30.0], [10.0]).ratio == 3


def test_without_a_sample_there_is_no_figure_rather_than_a_wrong_one() -> None:
    nothing = figure([], [])
    assert nothing.shown(nothing.samples, 0.5) == "-"


def test_every_figure_has_a_name_of_its_own() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(names) == len(set(names))
