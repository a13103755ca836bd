"""Makes a template of a description: a base, then step after step in sandboxes, each leaving a layer.

Steps that only say how others run (`ENV`, `WORKDIR`, `USER`) share the sandbox of the step after them: a
sandbox costs more than they do. What they and it leave is one layer, known by the key of the last of them.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from cloche_server import isolation_choice
from cloche_server.templates import copying
from cloche_server.templates import steps as words
from cloche_server.templates.steps import (
    BASE_STEP,
    DEFAULT_READY,
    FINAL_STEP,
    Context,
    Description,
    Step,
)
from cloche_server.templates.workshop import Bench, Command, CopyIn, Finished, Setting, Workshop
from cloche_wire.errors import ClocheError, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULT_IMAGE = "e2bdev/base"
_MOST_LAYERS = 90
"""From there on all steps that are left share a sandbox, and so a layer: one root has no more than 100."""


class BuildFailed(Exception):  # noqa: N818 -- it says what has happened, and is shown to the template's author
    """A build cannot go on."""

    def __init__(self, message: str, step: str) -> None:
        """Say why, and where: `base`, the number of a step, or `finalize`."""
        super().__init__(message)
        self.message = message
        self.step = step


class Base(NamedTuple):
    """What a build starts from."""

    key: str
    """The same for the same files and context."""
    layers: tuple[str, ...]
    context: Context
    start_cmd: str = ""
    ready_cmd: str = ""
    needless: frozenset[str] = frozenset()
    """Start commands of the vendor's image for what runs in every sandbox of ours by itself."""
    isolation: str = ""
    """What its sandboxes get at least; empty: the server's."""


class Kept(NamedTuple):
    """What a step has left in an earlier build."""

    layers: tuple[str, ...]
    context: Context


class Bases(Protocol):
    """Finds what a description is based on."""

    async def of_template(self, reference: str) -> Base:
        """Return a finished template that the team may use.

        Raises:
            TemplateNotFound: There is none of that name.
        """
        ...

    async def of_image(self, description: Description) -> Base:
        """Return what the description's image is here, or fetch it.

        Raises:
            NotFound: No registry has it, or none can be reached.
        """
        ...


class Memory(Protocol):
    """The team's steps of earlier builds."""

    async def find(self, key: str) -> Kept | None:
        """Return what the step of that key has left; None when it has to run."""
        ...

    async def keep(self, key: str, kept: Kept) -> None:
        """Keep what it has left."""
        ...


class Log(Protocol):
    """What the template's author sees of a build."""

    async def write(self, message: str, step: str, level: str = "info") -> None:
        """Add a line."""
        ...


class Target(NamedTuple):
    """Which build is made."""

    template_id: str
    build_id: str
    team_id: str
    name: str
    cpu_count: int
    memory_mib: int


class _State(NamedTuple):
    key: str
    layers: tuple[str, ...]
    context: Context


class Builder:
    """Makes one build."""

    def __init__(
        self, target: Target, uploads: Path, *, workshop: Workshop, bases: Bases, memory: Memory, log: Log
    ) -> None:
        """Work with these parts; archives lie in `uploads` under their hashes."""
        self._target = target
        self._uploads = uploads
        self._workshop = workshop
        self._bases = bases
        self._memory = memory
        self._log = log
        self._stages: dict[str, _State] = {}
        self._isolation = ""
        """The strongest that the description and its bases ask for."""

    async def make(self, description: Description) -> Finished:
        """Run all of it, and publish it.

        Raises:
            BuildFailed: A step failed; nothing was published, what finished steps have left is kept.
        """
        base: Base | None = None
        self._isolation = description.isolation
        for stage in description.stages:
            asked = Description(stage.from_image, stage.from_template, from_stage=stage.from_stage)
            asked = msgspec.structs.replace(asked, from_image_registry=description.from_image_registry)
            state, _ = await self._base(asked)
            title = f"stage {stage.name}"
            self._stages[stage.name] = await self._run(state, stage.steps, title, forced=description.force)
        state, base = await self._base(description)
        state = await self._run(state, description.steps, "", forced=description.force)
        return await self._publish(description, state, base)

    async def _base(self, description: Description) -> tuple[_State, Base | None]:
        if description.from_stage:
            return self._stages[description.from_stage], None
        name = description.from_template or description.from_image or DEFAULT_IMAGE
        await self._log.write(f"FROM {name}", BASE_STEP)
        try:
            if description.from_template:
                base = await self._bases.of_template(description.from_template)
            else:
                image = msgspec.structs.replace(description, from_image=name)
                base = await self._bases.of_image(image)
        except ClocheError as error:
            raise BuildFailed(_told(error), BASE_STEP) from error
        self._isolation = isolation_choice.stronger(self._isolation, base.isolation)
        return _State(base.key, base.layers, base.context), base

    async def _run(self, state: _State, steps: Sequence[Step], title: str, *, forced: bool) -> _State:
        waiting: list[tuple[int, Step]] = []
        for number, step in enumerate(steps, 1):
            forced = forced or step.force
            if step.kind == "COPY_FROM":
                if waiting:
                    state = await self._segment(state, waiting, len(steps), title, forced=forced)
                state = await self._copy_from(state, number, step, len(steps), forced=forced)
                waiting = []
                continue
            waiting.append((number, step))
            if step.changes_files and len(state.layers) < _MOST_LAYERS:
                state = await self._segment(state, waiting, len(steps), title, forced=forced)
                waiting = []
        return await self._segment(state, waiting, len(steps), title, forced=forced) if waiting else state

    async def _segment(
        self, state: _State, numbered: list[tuple[int, Step]], total: int, title: str, *, forced: bool
    ) -> _State:
        """Take what these steps have left before, or run them in one sandbox."""
        key = words.key_of(state.key, [(step.kind, step.args, step.files_hash) for _, step in numbered])
        kept = None if forced else await self._memory.find(key)
        for number, step in numbered if kept else ():
            await self._announce(number, step, total, title, "CACHED ")
        if kept is not None:
            return _State(key, kept.layers, kept.context)
        context, layers = state.context, state.layers
        if all(step.kind in {"ENV", "ARG", "SHELL"} for _, step in numbered):
            for number, step in numbered:
                await self._announce(number, step, total, title)
                context = _with_words(context, step)
            return _State(key, layers, context)
        last = str(numbered[0][0])
        try:
            async with self._workshop.bench(self._setting(layers)) as bench:
                for number, step in numbered:
                    last = str(number)
                    await self._announce(number, step, total, title)
                    context = await _Run(bench, self._log, self._uploads, last).step(context, step)
                layer = await bench.commit()
        except ClocheError as error:
            raise BuildFailed(_told(error), last) from error
        if layer.entries:
            layers = (layer.layer_id, *layers)
        await self._memory.keep(key, Kept(layers, context))
        return _State(key, layers, context)

    async def _copy_from(self, state: _State, number: int, step: Step, total: int, *, forced: bool) -> _State:
        """Gather files in a sandbox of the other stage, then put them to their place in one of this stage.

        What was gathered is a layer below the second sandbox, and not of the template: only what that one
        has changed is.
        """
        stage_name, source, target, owner, mode = step.args
        stage, target = self._stages[stage_name], _absolute(target, state.context)
        key = words.key_of(state.key, stage.key, source, target, owner, mode)
        kept = None if forced else await self._memory.find(key)
        await self._announce(number, step, total, "", "CACHED " if kept else "")
        if kept is not None:
            return _State(key, kept.layers, kept.context)
        try:
            gathered = await self._gather(stage, source, str(number))
            async with self._workshop.bench(self._setting((gathered, *state.layers))) as bench:
                run = _Run(bench, self._log, self._uploads, str(number))
                argv = ["/bin/sh", "-euc", copying.PLACE, "sh", target, owner, mode]
                await run.checked(Command(argv, "root", "/"), f"copy {source} from {stage_name}")
                layer = await bench.commit()
        except ClocheError as error:
            raise BuildFailed(_told(error), str(number)) from error
        layers = (layer.layer_id, *state.layers)
        await self._memory.keep(key, Kept(layers, state.context))
        return _State(key, layers, state.context)

    async def _gather(self, stage: _State, source: str, number: str) -> str:
        async with self._workshop.bench(self._setting(stage.layers)) as bench:
            run = _Run(bench, self._log, self._uploads, number)
            argv = ["/bin/sh", "-euc", copying.GATHER, "sh", source]
            await run.checked(Command(argv, "root", "/"), f"find {source}")
            return (await bench.commit()).layer_id

    async def _announce(self, number: int, step: Step, total: int, title: str, mark: str = "") -> None:
        where = f"{title} {number}/{total}".strip()
        await self._log.write(f"[{where}] {mark}{step.title}", str(number))

    def _setting(self, layers: tuple[str, ...]) -> Setting:
        target = self._target
        size = target.cpu_count, target.memory_mib
        return Setting(target.build_id, target.team_id, layers, *size, self._isolation)

    async def _publish(self, description: Description, state: _State, base: Base | None) -> Finished:
        start, ready = description.start_cmd, description.ready_cmd
        if not start and not ready and base is not None:
            start, ready = base.start_cmd, base.ready_cmd
        if base is not None and start in base.needless:
            await self._log.write(f"Runs in every sandbox without a start command: {start}", FINAL_STEP)
            start, ready = "", "" if ready == DEFAULT_READY else ready
        target, context = self._target, state.context
        finished = Finished(
            target.template_id,
            target.build_id,
            target.team_id,
            target.name,
            state.layers,
            target.cpu_count,
            target.memory_mib,
            context.user,
            context.workdir or _home_of(context.user),
            context.env,
            start,
            ready or (DEFAULT_READY if start else ""),
            self._isolation,
        )
        await self._log.write("Finalizing the template", FINAL_STEP)

        async def on_line(stream: str, line: str) -> None:
            await self._log.write(line, FINAL_STEP, "warn" if stream == "stderr" else "info")

        try:
            await self._workshop.publish(finished, on_line)
        except ClocheError as error:
            raise BuildFailed(_told(error), FINAL_STEP) from error
        return finished


class _Run:
    """One step on a bench."""

    def __init__(self, bench: Bench, log: Log, uploads: Path, number: str) -> None:
        self._bench = bench
        self._log = log
        self._uploads = uploads
        self._number = number

    async def step(self, context: Context, step: Step) -> Context:
        match step.kind:
            case "RUN":
                user = step.args[1] if len(step.args) > 1 and step.args[1] else context.user
                command = Command([*context.shell, step.args[0]], user, context.workdir, context.variables)
                await self.checked(command, step.args[0])
                return context
            case "EXEC":
                command = Command(step.args, context.user, context.workdir, context.variables)
                await self.checked(command, shlex.join(step.args))
                return context
            case "COPY" | "ADD":
                await self._bench.copy_in(self._copy(context, step))
                return context
            case "WORKDIR":
                return await self._workdir(context, step.args[0])
            case "USER":
                return await self._user(context, step.args[0])
            case _:
                return _with_words(context, step)

    def _copy(self, context: Context, step: Step) -> CopyIn:
        source, target, owner, mode = [*step.args, "", ""][:4]
        owner = owner or context.user
        return CopyIn(
            self._uploads / step.files_hash,
            _before_wildcards(source),
            _absolute(words.expand(target, context.variables), context),
            owner if ":" in owner else f"{owner}:{owner}",
            mode,
        )

    async def _workdir(self, context: Context, path: str) -> Context:
        folder = _absolute(words.expand(path, context.variables), context).rstrip("/") or "/"
        argv = ["/bin/sh", "-euc", _MAKE_WORKDIR, "sh", folder, context.user]
        await self.checked(Command(argv, "root", "/"), f"mkdir -p {shlex.quote(folder)}")
        return msgspec.structs.replace(context, workdir=folder)

    async def _user(self, context: Context, name: str) -> Context:
        said: list[str] = []

        async def on_line(stream: str, line: str) -> None:
            if stream == "stdout":
                said.append(line)
            else:
                await self._log.write(line, self._number, "warn")

        argv = ["/bin/sh", "-euc", _FIND_OR_MAKE_USER, "sh", name.partition(":")[0]]
        status = await self._bench.run(Command(argv, "root", "/"), on_line)
        if status != 0 or not said:
            raise BuildFailed(f"cannot be or become a user: {name}: exit status {status}", self._number)
        return msgspec.structs.replace(context, user=said[-1])

    async def checked(self, command: Command, shown: str) -> None:
        """Run it, log what it writes, and fail the build when it fails."""

        async def on_line(stream: str, line: str) -> None:
            await self._log.write(line, self._number, "warn" if stream == "stderr" else "info")

        try:
            status = await self._bench.run(command, on_line)
        except Unauthenticated as error:  # no such user; worded as clients know it
            told = f"command failed: {error.connect_code}: {error.message}"
            raise BuildFailed(f"failed to run command '{shown}': {told}", self._number) from error
        if status != 0:
            raise BuildFailed(f"failed to run command '{shown}': exit status {status}", self._number)


_MAKE_WORKDIR = """
new= at=$1
while [ ! -d "$at" ]; do new=$at at=$(dirname "$at"); done
[ -z "$new" ] || { mkdir -p "$1"; chown -R "$2:" "$new"; }
"""
_FIND_OR_MAKE_USER = """
id -u "$1" >/dev/null 2>&1 || {
    if command -v useradd >/dev/null 2>&1
    then useradd --create-home --shell "$(command -v bash || echo /bin/sh)" "$1" >&2
    else adduser -D "$1" >&2
    fi
}
id -un "$1"
"""


def _with_words(context: Context, step: Step) -> Context:
    if step.kind == "SHELL":
        return msgspec.structs.replace(context, shell=tuple(step.args))
    pairs = zip(step.args[::2], step.args[1::2], strict=True)
    given = {name: words.expand(value, context.variables) for name, value in pairs}
    if step.kind == "ARG":
        return msgspec.structs.replace(context, args=context.args | given)
    return msgspec.structs.replace(context, env=context.env | given)


def _before_wildcards(source: str) -> str:
    """The folder or file that a pattern starts at, as clients name it in their archives."""
    parts = PurePosixPath(source).parts
    plain = next((number for number, part in enumerate(parts) if set(part) & set("*?[{")), len(parts))
    return str(PurePosixPath(*parts[:plain])) if plain else "."


def _absolute(path: str, context: Context) -> str:
    folder = context.workdir or _home_of(context.user)
    joined = PurePosixPath(folder, path)
    return f"{joined}/" if path.endswith("/") and str(joined) != "/" else str(joined)


def _home_of(user: str) -> str:
    return "/root" if user in {"root", "0"} else f"/home/{user}"


def _told(error: ClocheError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
