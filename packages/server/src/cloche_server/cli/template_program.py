# ruff: noqa: UP045 - run by the caller's Python, which may be 3.9
"""Print what a Python file describes as a template, as JSON.

    python3 THIS FILE

Run by whoever builds, with the rights and the packages of that user: nothing of it happens on a server. The
template is what the file calls `template`, or its only one: of `cloche`, or of the official `e2b`.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any, Optional


def main() -> int:
    """Do what the arguments say; the exit code."""
    path = Path(sys.argv[1]).absolute()
    sys.path.insert(0, str(path.parent))
    # What the file prints is for whoever reads along, and not a part of the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    names = runpy.run_path(str(path), run_name="__template__")
    found = _template_of(names)
    if isinstance(found, str):
        sys.stderr.write(f"{found}: {path}\n")
        return 1
    sys.stdout.flush()
    with os.fdopen(answer, "w") as out:
        json.dump(found, out)
    return 0


def _template_of(names: dict[str, Any]) -> Any:  # noqa: ANN401 - a description, or what is wrong
    described = {name: about for name, value in names.items() if (about := _described(value)) is not None}
    if "template" in described:
        return described["template"]
    if not described:
        return "no template in this file: call one `template`"
    if len(described) > 1:
        return f"more than one template in this file ({', '.join(described)}): call one `template`"
    return next(iter(described.values()))


def _described(value: object) -> Optional[dict[str, Any]]:
    if isinstance(value, type):
        return None
    if type(value).__module__.split(".")[0] == "cloche" and hasattr(value, "describe"):
        return dict(value.describe())  # type: ignore[attr-defined]
    inner = getattr(value, "_template", value)
    if type(value).__module__.split(".")[0] != "e2b" or not hasattr(inner, "_instructions"):
        return None
    return _of_official(inner)


def _of_official(template: Any) -> dict[str, Any]:  # noqa: ANN401 - the official builder, of any version
    """What the official builder would send, but for files, which it names and we pack."""
    plain = [
        {
            "type": getattr(one["type"], "value", one["type"]),
            "args": list(one["args"]),
            "force": bool(one["force"]),
        }
        for one in template._instructions  # noqa: SLF001 - its own serializer hashes files, which takes long
    ]
    sent = json.loads(json.dumps(template._serialize([])))  # noqa: SLF001
    return {
        "description": {**sent, "steps": plain},
        "context": str(template._file_context_path),  # noqa: SLF001
        "ignored": list(template._file_ignore_patterns),  # noqa: SLF001
    }


if __name__ == "__main__":
    sys.exit(main())
