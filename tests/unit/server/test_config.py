"""Settings that cannot work are refused at the start."""

from pathlib import Path

import pytest

from cloche_server import config
from cloche_wire.errors import InvalidArgument


def load(folder: Path, text: str) -> config.Config:
    (folder / "config.toml").write_text(text)
    return config.load({"state": str(folder)})


def test_settings_of_volumes_are_read(tmp_path: Path) -> None:
    read = load(tmp_path, '[volumes]\nquota = "none"\nsize_mib = 100\nfiles = 1000\npreallocate = true\n')
    assert read.volumes == config.Volumes("none", 100, 1000, preallocate=True)


@pytest.mark.parametrize(
    "text", ["size_mib = 7", "files = 0", "size_mib = 100\nfiles = 500000", 'quota = "soft"', "sise_mib = 1"]
)
def test_settings_that_no_volume_can_be_made_with_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="bad configuration"):
        load(tmp_path, f"[volumes]\n{text}\n")


def test_rates_are_read_and_may_be_off(tmp_path: Path) -> None:
    read = load(tmp_path, "[limits]\nrequests_per_s = 0\ncreates_per_s = 0.5\ncreates_burst = 3\n")
    assert (read.limits.requests_per_s, read.limits.creates_per_s, read.limits.creates_burst) == (0, 0.5, 3)


@pytest.mark.parametrize(
    "text", ["requests_per_s = -1", "creates_per_s = nan", "creates_per_s = inf", "requests_burst = 0"]
)
def test_rates_that_mean_nothing_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="bad configuration"):
        load(tmp_path, f"[limits]\n{text}\n")
