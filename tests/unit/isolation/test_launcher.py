"""The launcher's way with crun, with a program of ours in crun's place."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, subprocess, sys
from cloche_server.isolation.container import launcher
launcher.CRUN_TIMEOUT_S = 0.2
os.defpath = sys.argv[1]
request = launcher.LaunchRequest("i0", sys.argv[2], "", "", 0, 0, [])
try:
    launcher._run_crun(request, [os.open("/dev/null", os.O_RDONLY)])
except subprocess.TimeoutExpired:
    print("given up")
"""


def test_crun_that_hangs_is_ended_and_reported(tmp_path: Path) -> None:
    crun = tmp_path / "crun"
    crun.write_text("#!/bin/sh\nexec sleep 600\n")
    crun.chmod(0o755)
    argv = [sys.executable, "-c", PROGRAM, f"{tmp_path}:/bin:/usr/bin", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "given up\n"
