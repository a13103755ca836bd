# ruff: noqa: UP045 - run by the template's Python, which may be 3.9
"""Import modules, and print what went wrong with each, as a list in JSON.

    python3 -c THIS DEADLINE_S named|usual MODULE...

Of the usual ones those that are not there are passed over.

The imports are a child's: one that hangs or crashes is an answer too.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import threading
import time
from typing import Optional

_BEGINS = "begins"
_UNUSED = "sandboxes start without it"
_UNFORKED = "contexts start a Python of their own, in 0.3 s instead of 0.03"


def main() -> None:
    """Try the modules that the arguments name."""
    deadline_s = float(sys.argv[1])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(writing, sys.argv[3:])
    os.close(writing)
    said, is_late = _listen(reading, deadline_s)
    if is_late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    lines = [json.loads(line) for line in said.splitlines()]
    warnings = [text for _, text in lines if text not in ("", _BEGINS)]
    if lines and lines[-1][1] == _BEGINS:
        name = lines[-1][0]
        how = f"takes longer than {deadline_s:.0f} s" if is_late else f"ends Python, {_described(status)}"
        warnings.append(f"importing {name} {how}: {_UNFORKED}")
    print(json.dumps(warnings))  # noqa: T201 - what it is for


def _listen(reading: int, deadline_s: float) -> tuple[bytes, bool]:
    """What the child says until its end, and whether that took too long."""
    said = b""
    until = time.monotonic() + deadline_s
    while (left_s := until - time.monotonic()) > 0 and select.select([reading], [], [], left_s)[0]:
        data = os.read(reading, 65536)
        if not data:
            return said, False
        said += data
    return said[: said.rfind(b"\n") + 1], True


def _described(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"with exit code {os.WEXITSTATUS(status)}"


def _be_child(writing: int, names: list[str]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for name in names:
        _say(writing, name, _BEGINS)
        _say(writing, name, _tried(name))
    os._exit(0)


def _say(writing: int, name: str, text: str) -> None:
    os.write(writing, json.dumps([name, text]).encode() + b"\n")


def _tried(name: str) -> str:
    threads = threading.active_count()
    failure: Optional[BaseException] = None
    try:
        importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit too
        failure = error
    if (
        sys.argv[2] == "usual"
        and isinstance(failure, ModuleNotFoundError)
        and failure.name
        and f"{name}.".startswith(f"{failure.name}.")
    ):
        return ""  # the template has no such package, which is nothing to be told
    if failure is not None:
        return f"{name} cannot be imported: {type(failure).__name__}: {str(failure)[:500]}: {_UNUSED}"
    if threading.active_count() > threads:
        return f"{name} starts a thread when it is imported, which no fork has: {_UNFORKED}"
    return ""


if __name__ == "__main__":
    main()
