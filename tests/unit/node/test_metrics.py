"""Samples, histories, sizes of layers."""

import os
import random
from pathlib import Path

import pytest

from cloche_server.isolation.base import Usage
from cloche_server.node import create, layer_size
from cloche_server.node.history import COARSE_POINTS, FINE_POINTS, History
from cloche_server.node.messages import MetricPoint, MetricsQuery
from cloche_server.node.metrics import Sampler

from .conftest import Node, request_for

pytestmark = pytest.mark.anyio
KIB = 1024


def point(at_s: int, cpu: float = 1.0, memory: int = 4 * KIB) -> MetricPoint:
    return MetricPoint(at_s, cpu, memory, 0, 8 * KIB)


def test_a_day_of_points_takes_at_most_30_kib() -> None:
    history = History()
    for n in range(2 * 24 * 720):
        history.add(point(5 * n))
    assert history.size_bytes <= 30 * KIB
    kept = history.points()
    assert len(kept) <= FINE_POINTS + COARSE_POINTS
    times = [one.at_s for one in kept]
    assert times == sorted(times)
    assert times[-1] - times[0] >= 24 * 3600


def test_recent_points_are_kept_as_they_were_taken_and_older_ones_a_minute_each() -> None:
    history = History()
    for n in range(FINE_POINTS + 24):
        history.add(point(5 * n, cpu=float(n % 12), memory=(n % 12) * KIB))
    kept = history.points()
    assert [one.at_s for one in kept[:2]] == [55, 115]
    assert kept[0].cpu_used_pct == pytest.approx(5.5)
    assert kept[0].memory_used_bytes == 11 * KIB
    assert len(kept) == 2 + FINE_POINTS
    assert history.points(100, 120)[0].at_s == 115
    assert history.latest() == [kept[-1]]
    assert History().latest() == []


def test_values_beyond_all_measure_do_not_break_a_history() -> None:
    history = History()
    history.add(MetricPoint(1, 1e9, 1 << 60, 1 << 60, 1 << 60))
    assert history.latest()[0].cpu_used_pct == 6553.5


async def test_a_sample_is_what_was_used_since_the_one_before(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(300 << 20, 1.0, 3, 100 << 20)
    monkeypatch.setattr(node.driver, "usage", lambda _: usage)
    async with node.machine() as machine:
        request = request_for(cpu_count=2, memory_mib=512)
        await create.create(machine, request)
        (machine.folder(request.sandbox_id) / "file").write_bytes(b"x" * 100_000)
        sampler = Sampler(machine)
        node.clock.elapsed_s += 5
        await sampler.sample()
        usage = Usage(300 << 20, 6.0, 3, 100 << 20)
        node.clock.elapsed_s += 5
        await sampler.sample()
        [found] = sampler.query(MetricsQuery([request.sandbox_id, "iunknown"]))
        first, second = found.points
        assert (first.cpu_used_pct, second.cpu_used_pct) == (10.0, 50.0)
        assert (second.memory_used_bytes, second.memory_cache_bytes) == (200 << 20, 100 << 20)
        assert second.at_s == first.at_s + 5
        assert (found.cpu_count, found.memory_total_bytes) == (2, 512 << 20)
        assert 100_000 < second.disk_used_bytes < found.disk_total_bytes
        [latest] = sampler.query(MetricsQuery([request.sandbox_id], only_latest=True))
        assert latest.points == [second]


async def test_a_new_sandbox_is_known_before_its_first_sample_and_forgotten_with_its_end(node: Node) -> None:
    async with node.machine() as machine:
        request = request_for()
        sampler = Sampler(machine)
        await create.create(machine, request)
        assert sampler.query(MetricsQuery([request.sandbox_id]))[0].points == []
        await sampler.sample()
        node.driver.exit(request.sandbox_id)
        await machine.live[request.sandbox_id].gone.wait()
        assert sampler.query(MetricsQuery([request.sandbox_id])) == []
        await sampler.sample()
        assert sampler.query(MetricsQuery([request.sandbox_id])) == []


async def test_a_layer_is_measured_again_only_when_its_sandbox_has_worked(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    real = layer_size.measure

    def counted(folder: Path, *, max_entries: int) -> layer_size.LayerSize:
        measured.append(folder.name)
        return real(folder, max_entries=max_entries)

    monkeypatch.setattr(layer_size, "measure", counted)
    usage = Usage(0, 1.0, 1)
    monkeypatch.setattr(node.driver, "usage", lambda _: usage)
    async with node.machine() as machine:
        await create.create(machine, request_for())
        sampler = Sampler(machine)
        for _ in range(20):
            await sampler.sample()
            node.clock.elapsed_s += 5
        assert len(measured) == 1
        usage = Usage(0, 2.0, 1)
        await sampler.sample()
        assert len(measured) == 2


def test_a_layers_size_is_its_blocks_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(b"x" * 1_000_000)
    layer = tmp_path / "layer"
    (layer / "a" / "b").mkdir(parents=True)
    (layer / "a" / "b" / "file").write_bytes(b"x" * 10_000)
    (layer / "a" / "link").symlink_to(outside)
    os.mkfifo(layer / "a" / "pipe")
    with (layer / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    found = layer_size.measure(layer, max_entries=100)
    assert 10_000 <= found.size_bytes < 200_000
    assert (found.entries, found.is_whole) == (6, True)


def test_a_tree_without_end_costs_no_more_than_the_budget(tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    for n in range(300):
        (wide / str(n)).touch()
    found = layer_size.measure(tmp_path, max_entries=100)
    assert not found.is_whole
    assert found.entries <= 101
    deep = tmp_path / "deep"
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(500):
        os.mkdir("deep", dir_fd=folder)
        below = os.open("deep", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    before = len([*Path("/proc/self/fd").iterdir()])
    found = layer_size.measure(deep, max_entries=10_000)
    assert not found.is_whole
    assert found.entries <= layer_size.MAX_DEPTH + 1
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert layer_size.measure(tmp_path / "gone", max_entries=5) == layer_size.LayerSize(0, 0, True)


def test_random_trees_are_measured_as_du_does(tmp_path: Path) -> None:
    rng = random.Random(4)
    folders = [tmp_path / "tree"]
    folders[0].mkdir()
    for n in range(60):
        parent = rng.choice(folders)
        if rng.random() < 0.3:
            (parent / f"d{n}").mkdir()
            folders.append(parent / f"d{n}")
        else:
            (parent / f"f{n}").write_bytes(b"x" * rng.randrange(20_000))
    blocks = sum(path.lstat().st_blocks for path in [folders[0], *folders[0].rglob("*")])
    assert layer_size.measure(folders[0], max_entries=1000).size_bytes == 512 * blocks
