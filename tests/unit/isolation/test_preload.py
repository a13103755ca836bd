"""A program that goes on in a fork imports what it lacks from inside, and from nowhere else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FORK = """
import os, sys
from cloche_server.isolation.container import preload
program = preload.load(sys.argv[1])
assert program.is_meant_by(["run", "it", "now"]) and not program.is_meant_by(["run"])
reading, writing = os.pipe()
if os.fork() == 0:
    program.run(["run", "it", "now"], {"NAME": "value"}, writing)
os.close(writing)
assert os.read(reading, 1) == b""
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
MAIN = """
import os, sys, thing
def main(arguments):
    import thing.later
    try:
        import only_here
    except ImportError:
        found = "nothing"
    else:
        found = "a module of the host"
    print(arguments, thing.later.WHERE, found, dict(os.environ), sep="|", flush=True)
    return 3
"""


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    here, inside = tmp_path / "here", tmp_path / "inside"
    for folder, name in ((here, "host"), (inside, "inside")):
        (folder / "thing").mkdir(parents=True)
        (folder / "thing" / "__init__.py").write_text("")
        (folder / "thing" / "later.py").write_text(f"WHERE = {name!r}\n")
    (here / "only_here.py").write_text("")
    (here / "program.py").write_text(MAIN)
    return here, inside


def test_what_is_imported_later_comes_from_inside(places: tuple[Path, Path]) -> None:
    here, inside = places
    program = {
        "argv": ["run", "it"], "module": "program", "here": [str(here)], "inside": [str(inside)],
        "moved": {str(here): str(inside)}, "title": "tested",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", FORK, json.dumps(program)], capture_output=True, text=True, timeout=30,
        check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("['now']|inside|nothing|{'NAME': 'value'}\n", 3), done.stderr
