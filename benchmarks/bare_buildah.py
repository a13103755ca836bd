"""Baselines of `cloche bench` by buildah: the same Dockerfile, from the same root, in the same turn.

    buildah_bud      `buildah bud` as it comes: one container for all steps, one layer, nothing known later
    buildah_layers   `buildah bud --layers`: one layer for each step, which the next build takes again

Its steps run by crun without a network, its storage is its own and on the same kind of disk as the server's.
No registry is asked: the template's root is made an image first, which is not timed.
"""

import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from costs import Act, Costs
from projects import BASE, builds, run

_DRIVERS = ("overlay", "vfs")


class BareBuildah:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path, rootfs: Path) -> None:
        """Take a folder for all it writes, and the root that images are made from; nothing is done yet."""
        self._folder = folder
        self._rootfs = rootfs

    @cached_property
    def _buildah(self) -> list[str]:
        """How it is called, once the image is there: with the first driver of storage that works."""
        failures: list[str] = []
        for driver in _DRIVERS:
            storage = ["--root", str(self._folder / driver), "--runroot", str(self._folder / f"{driver}-run")]
            argv = ["buildah", "--storage-driver", driver, *storage]
            try:
                self._import(argv)
            except RuntimeError as error:
                failures.append(f"{driver}: {error}")
                continue
            print(f"buildah: storage driver {driver}, isolation oci by crun", file=sys.stderr)
            return argv
        raise RuntimeError("; ".join(failures))

    def _import(self, argv: list[str]) -> None:
        container = run([*argv, "from", "scratch"]).strip()
        inside = run([*argv, "mount", container]).strip()
        run(["cp", "--archive", f"{self._rootfs}/.", inside])
        run([*argv, "commit", "--quiet", "--disable-compression", container, BASE])
        run([*argv, "rm", container])
        # What a build is measured beside is not the disk catching up with this.
        os.sync()

    def _bud(self, *options: str, has_cache: bool) -> Costs:
        steps = ["--isolation", "oci", "--runtime", "crun", "--network", "none", "--pull-never"]
        image = ["--tag", "localhost/cloche-bench"]
        command = [*self._buildah, "bud", *steps, *options, *image]

        def clean_up() -> None:
            subprocess.run([*self._buildah, "rmi", "--prune", "--force"], capture_output=True, check=False)
            subprocess.run([*self._buildah, "rmi", "--force", image[1]], capture_output=True, check=False)

        return builds(lambda folder: run([*command, str(folder)]), clean_up, has_cache=has_cache)

    def acts(self) -> dict[str, Act]:
        """All of them."""
        return {
            "buildah_bud": lambda: self._bud(has_cache=False),
            "buildah_layers": lambda: self._bud("--layers", has_cache=True),
        }
