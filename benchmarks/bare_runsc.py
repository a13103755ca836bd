"""Baselines of `cloche bench` by runsc alone: an interpreter with the usual packages, in the template's root.

    runsc_checkpoint  `runsc checkpoint`, compressed as is its default           beside pause, snapshot
    runsc_restore     `runsc create` and `runsc restore` of an image that is not
                      compressed, until the interpreter has answered             beside resume

The interpreter reads lines from its standard input and writes what they come to. It has no network, no user
ids of its own and no limits, and root's descriptors for the template's files: all of that would take longer.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO

from costs import Act, ms_of

INTERPRETER = """
import sys
import IPython, numpy, pandas, matplotlib.pyplot
for line in sys.stdin:
    print(eval(line), flush=True)
"""
CONTAINER = "cloche-baseline"
FLAGS = ("--platform=systrap", "--network=none", "--ignore-cgroups", "--overlay2=root:memory")
PATIENCE_S = 60


class BareRunsc:
    """Sandboxes of runsc in a folder of their own."""

    def __init__(self, folder: Path, rootfs: Path) -> None:
        """Take an empty folder, and the root, which is only read."""
        self._bundle = folder / "bundle"
        self._state = folder / "state"
        self._images = folder / "images"
        self._rootfs = rootfs

    def acts(self) -> dict[str, Act]:
        """Both, for a worker."""
        return {
            "runsc_checkpoint": lambda: {"ms": [self.checkpoint()]},
            "runsc_restore": lambda: {"ms": [self.restore()]},
        }

    def checkpoint(self) -> float:
        """Milliseconds of a plain checkpoint, after which the sandbox is gone."""
        image = self._new_image()
        with self._running():
            took_ms = ms_of(lambda: self._call("checkpoint", f"--image-path={image}", CONTAINER))
        shutil.rmtree(image)
        return took_ms

    def restore(self) -> float:
        """Milliseconds from `create` to the first answer of what was restored."""
        image = self._image
        began = time.perf_counter()
        with self._pipes() as (said, heard, ends):
            self._call("create", f"--bundle={self._bundle}", CONTAINER, ends=ends)
            try:
                said.write(b"1+1\n")
                self._call("restore", "--detach", f"--image-path={image}", CONTAINER, ends=ends)
                self._await_answer(heard)
                return (time.perf_counter() - began) * 1000
            finally:
                self._delete()

    @cached_property
    def _image(self) -> Path:
        image = self._new_image()
        with self._running():
            self._call("checkpoint", "--compression=none", f"--image-path={image}", CONTAINER)
        return image

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """A sandbox whose interpreter has imported everything and has answered once."""
        with self._pipes() as (said, heard, ends):
            self._call("run", "--detach", f"--bundle={self._bundle}", CONTAINER, ends=ends)
            try:
                said.write(b"1+1\n")
                self._await_answer(heard)
                yield
            finally:
                self._delete()

    def _await_answer(self, heard: IO[bytes]) -> None:
        answer = heard.readline()
        if answer != b"2\n":
            raise RuntimeError(f"it says {answer!r}")

    @contextlib.contextmanager
    def _pipes(self) -> Iterator[tuple[IO[bytes], IO[bytes], tuple[int, int]]]:
        """Where to write to and read from, and the ends that the sandbox gets."""
        self._prepare()
        its_input, ours = os.pipe()
        theirs, its_output = os.pipe()
        with os.fdopen(ours, "wb", 0) as said, os.fdopen(theirs, "rb") as heard:
            try:
                yield said, heard, (its_input, its_output)
            finally:
                os.close(its_input)
                os.close(its_output)

    def _prepare(self) -> None:
        """Write its configuration, which has what runsc's own example has, but our root and interpreter."""
        if self._bundle.exists():
            return
        self._bundle.mkdir()
        self._images.mkdir()
        subprocess.run(["runsc", "spec"], cwd=self._bundle, check=True)
        path = self._bundle / "config.json"
        config = json.loads(path.read_text())
        config["process"] |= {"terminal": False, "args": ["python3", "-B", "-c", INTERPRETER]}
        config["root"] = {"path": str(self._rootfs), "readonly": False}
        path.write_text(json.dumps(config))

    def _new_image(self) -> Path:
        self._prepare()
        return Path(tempfile.mkdtemp(dir=self._images))

    def _delete(self) -> None:
        self._call("delete", "--force", CONTAINER)

    def _call(self, *arguments: str, ends: tuple[int, int] | None = None) -> None:
        """One call of runsc, to its end; what it starts has the pipes' ends.

        Raises:
            RuntimeError: It failed.
        """
        its_input, its_output = ends or (subprocess.DEVNULL, subprocess.DEVNULL)
        with tempfile.TemporaryFile() as errors:  # a pipe would be held open by what it starts
            done = subprocess.run(
                ["runsc", *FLAGS, f"--root={self._state}", *arguments],
                stdin=its_input,
                stdout=its_output,
                stderr=errors,
                timeout=PATIENCE_S,
                check=False,
            )
            if done.returncode:
                errors.seek(0)
                raise RuntimeError(errors.read().decode(errors="replace").strip()[-200:] or arguments[0])
