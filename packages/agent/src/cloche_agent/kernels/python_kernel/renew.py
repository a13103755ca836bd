# ruff: noqa: ANN401, SLF001 - modules of the template, whatever they are
"""What a fork must not have in common with its siblings, what it lacks, and what shows that it is too old.

A process that is restored from a checkpoint has siblings too: other restores of the same one.

See: security specification 2.8; rand(7ossl) RAND_add; OpenBLAS, openblas_set_num_threads; CPython,
Lib/tempfile.py, Lib/uuid.py, Lib/multiprocessing/process.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import random
import sys
from typing import Any

_folders: dict[str, int] = {}
_set_threads: list[Any] = []
_SETTERS = ("openblas_set_num_threads", "scipy_openblas_set_num_threads", "scipy_openblas_set_num_threads64_")


def remember() -> None:
    """Note, before the forks, where modules are found, and how libraries are given threads.

    Those that have been installed or removed since can be told by the first. The second is for OpenBLAS,
    which has had one thread until here: it makes them once, and a fork takes none along.
    """
    _folders.update(_seen())
    for name in _libraries():
        if "openblas" in name:
            library = ctypes.CDLL(name)
            _set_threads.extend(getattr(library, setter) for setter in _SETTERS if hasattr(library, setter))


class _Loaded(ctypes.Structure):
    """The begin of `struct dl_phdr_info`."""

    _fields_ = (("address", ctypes.c_void_p), ("name", ctypes.c_char_p))


def _libraries() -> list[str]:
    """Files of the shared libraries that are loaded (dl_iterate_phdr(3)); there is no /proc to look at."""
    found: list[str] = []

    def note(info: Any, size: int, data: Any) -> int:
        found.append(os.fsdecode(info.contents.name or b""))
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Loaded), ctypes.c_size_t, ctypes.c_void_p)
    ctypes.CDLL(None).dl_iterate_phdr(kind(note), None)
    return found


def unchanged() -> bool:
    """Whether modules are found where they were, so that none that is imported has another version by now."""
    return _seen() == _folders


def _seen() -> dict[str, int]:
    """When anything was last added to or removed from each folder, in ns."""
    found = {}
    for folder in sys.path:
        try:
            found[folder] = os.stat(folder).st_mtime_ns  # noqa: PTH116 - start-up time
        except OSError:
            found[folder] = 0
    return found


def renew() -> None:
    """Give this process randomness and names of its own.

    The order of hashes (PYTHONHASHSEED) and the layout of the memory stay those of the parent: siblings of
    one team and one template share them.
    """
    random.seed()
    for name, act in _ACTS.items():
        if (module := sys.modules.get(name)) is not None:
            with contextlib.suppress(Exception):  # another version of it, or a module of the user's own
                act(module)
    for set_threads in _set_threads:
        set_threads(len(os.sched_getaffinity(0)))
    importlib.invalidate_caches()


def _numpy(module: Any) -> None:
    module.seed()


def _torch(module: Any) -> None:
    module.seed()


def _tempfile(module: Any) -> None:
    module._name_sequence = None


def _uuid(module: Any) -> None:
    for name in ("_node", "_last_timestamp", "_last_timestamp_v6", "_last_timestamp_v7"):
        if hasattr(module, name):
            setattr(module, name, None)
    # libuuid has a sequence number in its own memory; without it uuid1 draws one.
    module._generate_time_safe = None


def _multiprocessing(module: Any) -> None:
    # Programs that it has started know the key: a restored Manager or Pool would not be understood any more.
    if not module._children:
        module.current_process().authkey = os.urandom(32)


def _ssl(module: Any) -> None:
    module.RAND_add(os.urandom(48), 48.0)


def _platform(module: Any) -> None:
    module._uname_cache = None  # knows the host's name


_ACTS = {
    "numpy.random": _numpy,
    "torch": _torch,
    "tempfile": _tempfile,
    "uuid": _uuid,
    "multiprocessing.process": _multiprocessing,
    "ssl": _ssl,
    "platform": _platform,
}
