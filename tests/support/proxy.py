"""Caddy in front of a server, with the configurations that docs/tls.md prints."""

import os
import re
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.source import ROOT

WITH_FILES, ON_DEMAND = re.findall(
    r"```caddyfile\n(.*?)```", (ROOT / "docs" / "tls.md").read_text(), re.DOTALL
)
"""A certificate in files, and names certified one by one through ACME."""


@contextmanager
def caddy(configuration: str, folder: Path, **variables: str) -> Generator[Path]:
    """Run Caddy with a Caddyfile until the block ends; yields where it keeps its data.

    Args:
        configuration: The Caddyfile.
        folder: Made for it.
        variables: What the Caddyfile takes from the environment.
    """
    folder.mkdir()
    (folder / "Caddyfile").write_text(configuration)
    places = dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME"), str(folder))
    argv = ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            argv, env=os.environ | places | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield folder / "caddy"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
