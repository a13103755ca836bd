"""A program that was imported before the fork, and goes on in it instead of being started.

What it has imported came from paths of the host. Inside a sandbox those are the tenant's to fill, so every
way by which it could import more is led to the program's own library, which is shown there read-only.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from importlib import machinery
from types import ModuleType
from typing import NamedTuple, NoReturn, cast

from cloche_server.isolation import syscalls


class Preloaded(NamedTuple):
    """A program whose module is imported; see `base.Program` for the fields."""

    module: ModuleType
    argv: tuple[str, ...]
    moved: dict[str, str]
    inside: tuple[str, ...]
    title: str

    def is_meant_by(self, argv: list[str]) -> bool:
        """Whether a command would start this program."""
        return tuple(argv[: len(self.argv)]) == self.argv

    def run(self, argv: list[str], env: dict[str, str], report: int) -> NoReturn:
        """Be the program, as if the command had been executed; closing `report` tells that it has begun."""
        os.environ.clear()
        os.environ.update(env)
        self._import_from_inside()
        syscalls.set_title(self.title)
        os.close(report)
        os._exit(self.module.main(argv[len(self.argv) :]))

    def _import_from_inside(self) -> None:
        sys.path[:] = self.inside
        sys.path_importer_cache.clear()
        sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter, machinery.PathFinder]
        for module in tuple(sys.modules.values()):
            # SAFETY: a submodule is looked for on its package's path; what leads elsewhere leads nowhere.
            found: object = getattr(module, "__path__", None)
            if isinstance(found, list):
                paths = cast("list[str]", found)
                paths[:] = filter(None, map(self._inside, paths))
            elif found is not None:
                module.__path__ = []

    def _inside(self, path: str) -> str:
        for here, there in self.moved.items():
            if path == here or path.startswith(here + "/"):
                return there + path[len(here) :]
        return ""


def load(text: str) -> Preloaded:
    """Import a program (`base.Program` as JSON), and have all that is there now shared by every fork."""
    fields = json.loads(text)
    sys.path[:0] = fields["here"]
    program = Preloaded(
        importlib.import_module(fields["module"]),
        tuple(fields["argv"]),
        fields["moved"],
        tuple(fields["inside"]),
        fields["title"],
    )
    # Out of the collector's sight, so that no fork writes to these pages only to look at them.
    gc.collect()
    gc.freeze()
    return program
