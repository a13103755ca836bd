"""Makes a template of a description: a base, then step after step in sandboxes, each leaving a layer.

Steps that only say how others run (`ENV`, `WORKDIR`, `USER`) share the sandbox of the step after them: a
sandbox costs more than they do. What they and it leave is one layer, known by the key of the last of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from cloche_server import isolation_choice
from cloche_server.node.templates import DEFAULT_WARM
from cloche_server.templates import preloading
from cloche_server.templates import steps as words
from cloche_server.templates.images import reference
from cloche_server.templates.step_run import BuildFailed, Log, StepRun, with_words
from cloche_server.templates.steps import (
    BASE_STEP,
    DEFAULT_READY,
    FINAL_STEP,
    Context,
    Description,
    Step,
)
from cloche_server.templates.workshop import Finished, Setting, Workshop
from cloche_wire.errors import ClocheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULT_IMAGE = "e2bdev/base"
MOST_LAYERS = 90
"""A chain that has more is squashed: one root has no more than 100, and a step needs some over it."""
_LEAST_OWN, _SQUASHED = 20, 50
"""Only what this build has added is squashed where that is enough; else so many layers, its base's too."""


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
    image: str = ""
    """The image that it was made of, by its digest."""
    warm: tuple[str, ...] = DEFAULT_WARM
    """Python modules that its sandboxes have imported before anybody asks for them."""


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
    shared: frozenset[str] = frozenset()
    """Layers of its base, which other templates have too."""


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
        self._images: dict[str, str] = {}
        """What stages are based on, by their names; and the template itself, by none."""
        self._isolation = ""
        """The strongest that the description and its bases ask for."""
        self.at_step = BASE_STEP
        """The step that was begun last."""

    async def make(self, description: Description) -> Finished:
        """Run all of it, and publish it.

        Raises:
            BuildFailed: A step failed; nothing was published, what finished steps have left is kept.
        """
        base: Base | None = None
        self._isolation = description.isolation
        for stage in description.stages:
            asked = Description(stage.from_image, stage.from_template, from_stage=stage.from_stage)
            if stage.from_image and reference.same_registry(stage.from_image, description.from_image):
                asked = msgspec.structs.replace(asked, from_image_registry=description.from_image_registry)
            state, _ = await self._base(asked, stage.name)
            title = f"stage {stage.name}"
            self._stages[stage.name] = await self._run(state, stage.steps, title, forced=description.force)
        state, base = await self._base(description)
        state = await self._run(state, description.steps, "", forced=description.force)
        return await self._publish(description, state, base)

    async def _base(self, description: Description, stage: str = "") -> tuple[_State, Base | None]:
        if description.from_stage:
            self._images[stage] = self._images[description.from_stage]
            return self._stages[description.from_stage], None
        name = description.from_template or description.from_image or DEFAULT_IMAGE
        await self._log.write(f"FROM {name}", BASE_STEP)
        try:
            if description.from_template:
                base = await self._bases.of_template(description.from_template)
            else:
                image = msgspec.structs.replace(description, from_image=name, isolation=self._isolation)
                base = await self._bases.of_image(image)
        except ClocheError as error:
            raise BuildFailed(_told(error), BASE_STEP) from error
        self._isolation = isolation_choice.stronger(self._isolation, base.isolation)
        self._images[stage] = base.image
        return await self._short_base(base), base

    async def _short_base(self, base: Base) -> _State:
        """A base, squashed where it leaves no room for steps; the next build of it takes the same layers."""
        # A template and the image that it stands for are the same files, where relative paths may differ.
        key = words.key_of(base.key, base.context.user, base.context.workdir)
        state = _State(key, base.layers, base.context, frozenset(base.layers))
        if len(base.layers) <= MOST_LAYERS:
            return state
        key = words.key_of(state.key, "squashed")
        kept = await self._memory.find(key)
        if kept is None:
            try:
                kept = Kept(await self._squashed(state, base.layers, BASE_STEP), base.context)
            except ClocheError as error:
                raise BuildFailed(_told(error), BASE_STEP) from error
            await self._memory.keep(key, kept)
        return state._replace(layers=kept.layers, shared=frozenset(kept.layers))

    async def _squashed(self, state: _State, layers: tuple[str, ...], step: str) -> tuple[str, ...]:
        """A chain short enough for one more step, of the same content."""
        while len(layers) > MOST_LAYERS:
            found = (number for number, name in enumerate(layers) if name in state.shared)
            own = next(found, len(layers) - 1)
            count = own if own >= _LEAST_OWN else _SQUASHED
            layer = await self._workshop.squash(self._target.team_id, layers[:count], layers[count:])
            await self._log.write(f"{count} layers became one: {layer.size_bytes >> 20} MiB", step, "debug")
            layers = (layer.layer_id, *layers[count:])
        return layers

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
            if step.changes_files:
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
            return state._replace(key=key, layers=kept.layers, context=kept.context)
        context, layers = state.context, state.layers
        if all(step.kind in {"ENV", "ARG", "SHELL"} for _, step in numbered):
            for number, step in numbered:
                await self._announce(number, step, total, title)
                context = with_words(context, step)
            return state._replace(key=key, context=context)
        last = str(numbered[0][0])
        try:
            async with self._workshop.bench(self._setting(layers)) as bench:
                for number, step in numbered:
                    last = str(number)
                    await self._announce(number, step, total, title)
                    context = await StepRun(bench, self._log, self._uploads, last).step(context, step)
                layer = await bench.commit()
            if layer.entries:
                layers = await self._squashed(state, (layer.layer_id, *layers), last)
        except ClocheError as error:
            raise BuildFailed(_told(error), last) from error
        await self._memory.keep(key, Kept(layers, context))
        return state._replace(key=key, layers=layers, context=context)

    async def _copy_from(self, state: _State, number: int, step: Step, total: int, *, forced: bool) -> _State:
        """Gather files in a sandbox of the other stage, then put them to their place in one of this stage.

        What was gathered is a layer below the second sandbox, and not of the template: only what that one
        has changed is.
        """
        stage_name, source, target, owner, mode = step.args
        stage = self._stages[stage_name]
        key = words.key_of(state.key, stage.key, source, target, owner, mode)
        kept = None if forced else await self._memory.find(key)
        await self._announce(number, step, total, "", "CACHED " if kept else "")
        if kept is not None:
            return state._replace(key=key, layers=kept.layers)
        try:
            gathered = await self._gather(stage, source)
            async with self._workshop.bench(self._setting((gathered, *state.layers))) as bench:
                run = StepRun(bench, self._log, self._uploads, str(number))
                target = await run.absolute(target, state.context)
                await bench.change("place", target, owner, mode)
                layer = await bench.commit()
            layers = await self._squashed(state, (layer.layer_id, *state.layers), str(number))
        except ClocheError as error:
            raise BuildFailed(_told(error), str(number)) from error
        await self._memory.keep(key, Kept(layers, state.context))
        return state._replace(key=key, layers=layers)

    async def _gather(self, stage: _State, source: str) -> str:
        async with self._workshop.bench(self._setting(stage.layers)) as bench:
            await bench.change("gather", source)
            return (await bench.commit()).layer_id

    async def _announce(self, number: int, step: Step, total: int, title: str, mark: str = "") -> None:
        self.at_step = str(number)
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
        self.at_step = FINAL_STEP
        await self._log.write("Finalizing the template", FINAL_STEP)
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
            context.workdir,
            context.env,
            start,
            ready or (DEFAULT_READY if start else ""),
            self._isolation,
            self._images[""],
            preloading.joined(base.warm if base else DEFAULT_WARM, description.preload),
        )

        async def on_line(stream: str, line: str) -> None:
            await self._log.write(line, FINAL_STEP, "warn" if stream == "stderr" else "info")

        try:
            if description.preload:
                told = await preloading.warnings(
                    self._workshop, self._setting(state.layers), context.env, description.preload
                )
                for warning in told:
                    await self._log.write(warning, FINAL_STEP, "warn")
                finished = msgspec.structs.replace(finished, warnings=tuple(told))
            await self._workshop.publish(finished, on_line)
        except ClocheError as error:
            raise BuildFailed(_told(error), FINAL_STEP) from error
        return finished


def _told(error: ClocheError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
