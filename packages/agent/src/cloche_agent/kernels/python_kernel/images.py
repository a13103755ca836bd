# ruff: noqa: ANN401, UP045 - IPython is untyped, runs on Python 3.9
"""Pillow in a sandbox without a screen: saving a picture to a path shows it, and no viewer is started."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class PillowHook(importlib.abc.MetaPathFinder):
    """Waits for the import of `PIL.Image` and `PIL.ImageShow` to change them; never imports Pillow itself."""

    def __init__(self) -> None:
        """Not yet on `sys.meta_path`."""
        self._changes = {"PIL.Image": _show_saved_pictures, "PIL.ImageShow": _start_no_viewer}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        """The spec that the finders after this one find, with a loader that applies the change."""
        change = self._changes.pop(name, None)
        if change is None:
            return None
        if not self._changes:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


def _show_saved_pictures(image_module: Any) -> None:
    save = image_module.Image.save

    def save_and_show(image: Any, fp: Any, format: Any = None, **params: Any) -> None:  # noqa: A002
        save(image, fp, format, **params)
        # A figure that matplotlib saves is shown by its own backend.
        caller = sys._getframe(1).f_globals.get("__name__", "")  # noqa: SLF001
        if isinstance(fp, str) and not caller.startswith("matplotlib"):
            from IPython.display import display

            display(image)

    image_module.Image.save = save_and_show


def _start_no_viewer(show_module: Any) -> None:
    show_module.UnixViewer.show_file = lambda viewer, path, **options: 1
