"""What a template is made of: a base and steps, checked before anything runs, and the key of each step.

A step's key is a hash of everything that its result depends on: the base, every step before it, its own words
and the hash of its files. The same key has the same result, so a step that is known need not run again.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import msgspec

from cloche_server.templates import preloading
from cloche_wire.errors import InvalidArgument

MAX_STEPS = 500
MAX_TEXT_BYTES = 256 * 1024
"""Of the words of one step."""

BASE_STEP = "base"
FINAL_STEP = "finalize"
"""What the phases before and after the numbered steps are called on the wire."""

DEFAULT_READY = "sleep 20"
"""The ready command of a start command that comes without one."""

LAYERS_ALONE = "(layers)"
"""In the place of an image: nothing, not even what `scratch` gets. What is imported brings all its layers."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FILES_HASH = re.compile(r"[0-9a-f]{64}\Z")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,62})?\Z")
MODE = re.compile(r"[0-7]{3,4}\Z")
"""Of files, in octal."""


class Step(msgspec.Struct, frozen=True, rename="camel"):
    """One step, as clients send it.

    `SHELL`, `EXEC` and `COPY_FROM` are ours, for Dockerfiles, and so is `LAYER`: an archive as images have
    them, by its SHA-256, of which the root becomes what it says.
    """

    type: str
    args: list[str] = []
    files_hash: str = ""
    force: bool = False

    @property
    def kind(self) -> str:
        """Its type, in the spelling that is compared."""
        return self.type.upper()

    @property
    def changes_files(self) -> bool:
        """Whether it may leave files, so that it ends a layer."""
        return self.kind in {"RUN", "EXEC", "COPY", "ADD", "COPY_FROM", "LAYER"}

    @property
    def title(self) -> str:
        """What the log calls it, on one line."""
        words = " ".join(word for word in self.args if word)
        return f"{self.kind} {words}".replace("\n", " ")[:300]


class Registry(msgspec.Struct, frozen=True, rename="camel"):
    """What opens a registry of images; never logged, stored or shown to a step."""

    type: str = "registry"
    username: str = ""
    password: str = ""
    aws_access_key_id: str = ""
    aws_secret_access_key: str = ""
    aws_region: str = ""
    service_account_json: str = ""


class Stage(msgspec.Struct, frozen=True, rename="camel"):
    """A base and steps of which others take files: a stage of a Dockerfile. Ours."""

    name: str
    from_image: str = ""
    from_template: str = ""
    from_stage: str = ""
    steps: list[Step] = []


class Description(msgspec.Struct, frozen=True, rename="camel"):
    """Everything a build is made from: the body of `POST /v2/templates/{id}/builds/{id}`."""

    from_image: str = ""
    from_template: str = ""
    from_image_registry: Registry | None = None
    from_stage: str = ""
    force: bool = False
    steps: list[Step] = []
    start_cmd: str = ""
    ready_cmd: str = ""
    stages: list[Stage] = []
    isolation: str = ""
    """What steps and sandboxes get; empty: that of the base, or the server's. Ours."""
    preload: list[str] = []
    """Python modules that sandboxes have imported before anybody asks, beside those of the base. Ours."""


class Context(msgspec.Struct, frozen=True):
    """What a step runs with, and leaves to the next one."""

    user: str = "user"
    workdir: str = ""
    """Empty: the user's home."""
    env: dict[str, str] = {}
    args: dict[str, str] = {}
    """Variables of the build alone: steps see them, sandboxes do not."""
    shell: tuple[str, ...] = ("/bin/bash", "-l", "-c")

    @property
    def variables(self) -> dict[str, str]:
        """What a step sees."""
        return self.args | self.env


def is_files_hash(text: str) -> bool:
    """Whether the text may stand in a path as the hash of files."""
    return _FILES_HASH.match(text) is not None


def check(description: Description) -> None:
    """Refuse what no build could be made of, before anything runs.

    Raises:
        InvalidArgument: The message names the step.
    """
    bases = [description.from_image, description.from_template, description.from_stage]
    if sum(map(bool, bases)) > 1:
        raise InvalidArgument("a template is made from one base: fromImage or fromTemplate")
    names: set[str] = set()
    for stage in description.stages:
        _check_steps(stage.steps, names, f"stage {stage.name!r}, ")
        if stage.from_stage and stage.from_stage not in names:
            raise InvalidArgument(f"no such stage before: {stage.from_stage!r}")
        names.add(stage.name)
    if description.from_stage and description.from_stage not in names:
        raise InvalidArgument(f"no such stage: {description.from_stage!r}")
    _check_steps(description.steps, names, "")
    if problem := preloading.problem(description.preload):
        raise InvalidArgument(problem)
    for command in (description.start_cmd, description.ready_cmd):
        if len(command) > MAX_TEXT_BYTES or "\0" in command:
            raise InvalidArgument("start and ready commands are texts of at most 256 KiB")


def _check_steps(steps: list[Step], stages: set[str], where: str) -> None:
    if len(steps) > MAX_STEPS:
        raise InvalidArgument(f"too many steps: {len(steps)} of at most {MAX_STEPS}")
    for number, step in enumerate(steps, 1):
        if problem := _problem(step, stages):
            raise InvalidArgument(f"{where}step {number} ({step.kind[:20]}): {problem}")


def _problem(step: Step, stages: set[str]) -> str:
    args = step.args
    if sum(map(len, args)) > MAX_TEXT_BYTES or any("\0" in word for word in args):
        return "its words are longer than 256 KiB or hold a NUL"
    match step.kind:
        case "RUN":
            return "" if 1 <= len(args) <= 2 and args[0].strip() else "takes a command, and maybe a user"
        case "EXEC" | "SHELL":
            return "" if args else "takes a command in words"
        case "COPY" | "ADD":
            return _copy_problem(step)
        case "LAYER":
            return "" if is_files_hash(step.files_hash) else "needs filesHash: 64 lower hex digits"
        case "COPY_FROM":
            return _copy_from_problem(args, stages)
        case "ENV" | "ARG":
            return _variables_problem(args)
        case "WORKDIR":
            return "" if len(args) == 1 and args[0] else "takes a path"
        case "USER":
            return "" if 1 <= len(args) <= 2 and _USER.match(args[0]) else "takes the name of a user"
        case _:
            return "no such kind of step"


def _variables_problem(args: list[str]) -> str:
    if not args or len(args) % 2:
        return "takes names and values"
    bad = [name for name in args[::2] if not _ENV_NAME.match(name)]
    return f"not a name of a variable: {bad[0][:80]!r}" if bad else ""


def _copy_from_problem(args: list[str], stages: set[str]) -> str:
    if len(args) != 5:
        return "takes a stage, a source, a destination, an owner and a mode"
    if args[0] not in stages:
        return f"no such stage before: {args[0]!r}"
    return _ownership_problem(args[3], args[4])


def _copy_problem(step: Step) -> str:
    args = step.args
    if not 2 <= len(args) <= 4:
        return "takes a source, a destination, and maybe an owner and a mode"
    if not is_files_hash(step.files_hash):
        return "needs filesHash: 64 lower hex digits"
    return _ownership_problem(*[*args[2:], "", ""][:2])


def _ownership_problem(owner: str, mode: str) -> str:
    if owner and not _USER.match(owner):
        return f"not an owner: {owner[:80]!r}"
    return f"not a mode: {mode[:20]!r}" if mode and not MODE.match(mode) else ""


def key_of(before: str, *words: Any) -> str:  # noqa: ANN401 -- anything that JSON can hold
    """Return the key of what follows `before` and depends on nothing but these words."""
    text = json.dumps([before, *words], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


_REFERENCE = re.compile(r"\\(.)|\$(?:\{(\w+)(?:(:?[-+])([^}]*))?\}|(\w+))", re.DOTALL)


def expand(text: str, env: dict[str, str]) -> str:
    r"""Replace `$NAME`, `${NAME}`, `${NAME:-word}` and `${NAME:+word}`; `\$` is a dollar; nothing is run."""

    def value(found: re.Match[str]) -> str:
        escaped, braced, operator, word, plain = found.groups()
        if escaped is not None:
            return escaped if escaped == "$" else found[0]
        known = env.get(braced or plain)
        is_given = bool(known) if operator and operator.startswith(":") else known is not None
        if operator is None:
            return known or ""
        if operator.endswith("-"):
            return known or "" if is_given else expand(word, env)
        return expand(word, env) if is_given else ""

    return _REFERENCE.sub(value, text)
