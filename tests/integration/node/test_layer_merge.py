"""Several layers made one: compared with what overlayfs itself shows of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.source import ROOT

pytestmark = pytest.mark.needs("root", "overlay")


@pytest.mark.parametrize("seed", range(40))
def test_merged_layers_show_what_they_showed(seed: int, tmp_path: Path) -> None:
    """Whatever programs have done in them, and wherever in the chain they are; names, content, owners, modes,
    attributes, times, hard links, and what is hidden below."""
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.support.overlays"]
    done = subprocess.run(
        [*argv, str(seed), str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    entries, before, after = json.loads(done.stdout)
    assert entries > 5, "something to look at"
    assert after == before
