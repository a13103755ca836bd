"""One step of a build in a sandbox: what it runs there, with what, and what it leaves to the next one."""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

import msgspec

from cloche_server.templates import steps as words
from cloche_server.templates.steps import Context, Step
from cloche_server.templates.workshop import Bench, Command, CopyIn
from cloche_wire.errors import Unauthenticated

if TYPE_CHECKING:
    from pathlib import Path


class BuildFailed(Exception):  # noqa: N818 -- it says what has happened, and is shown to the template's author
    """A build cannot go on."""

    def __init__(self, message: str, step: str) -> None:
        """Say why, and where: `base`, the number of a step, or `finalize`."""
        super().__init__(message)
        self.message = message
        self.step = step


class Log(Protocol):
    """What the template's author sees of a build."""

    async def write(self, message: str, step: str, level: str = "info") -> None:
        """Add a line."""
        ...


class StepRun:
    """One step of a build on a bench."""

    def __init__(self, bench: Bench, log: Log, uploads: Path, number: str) -> None:
        """Run there; archives lie in `uploads` under their hashes, and lines are logged under this number."""
        self._bench = bench
        self._log = log
        self._uploads = uploads
        self._number = number

    async def step(self, context: Context, step: Step) -> Context:
        """Do what the step says; return what the next one runs with.

        Raises:
            BuildFailed: It failed.
            ClocheError: As those of `Bench`.
        """
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
                await self._bench.copy_in(await self._copy(context, step))
                return context
            case "LAYER":
                await self._bench.apply_upload(self._uploads / step.files_hash)
                return context
            case "WORKDIR":
                return await self._workdir(context, step.args[0])
            case "USER":
                return await self._user(context, step.args[0])
            case _:
                return with_words(context, step)

    async def _copy(self, context: Context, step: Step) -> CopyIn:
        source, target, owner, mode = [*step.args, "", ""][:4]
        owner = owner or context.user
        return CopyIn(
            self._uploads / step.files_hash,
            _before_wildcards(source),
            await self.absolute(words.expand(target, context.variables), context),
            owner if ":" in owner else f"{owner}:{owner}",
            mode,
        )

    async def _workdir(self, context: Context, path: str) -> Context:
        folder = (await self.absolute(words.expand(path, context.variables), context)).rstrip("/") or "/"
        await self._bench.change("workdir", folder, context.user)
        return msgspec.structs.replace(context, workdir=folder)

    async def _user(self, context: Context, name: str) -> Context:
        found = await self._bench.change("user", name.partition(":")[0])
        return msgspec.structs.replace(context, user=found)

    async def absolute(self, path: str, context: Context) -> str:
        """A path as a step names it, from the root: a relative one begins in its folder, else at home.

        Raises:
            BuildFailed: The image has no such user.
        """
        folder = "/" if path.startswith("/") else context.workdir or await self._home_of(context.user)
        joined = PurePosixPath(folder, path)
        return f"{joined}/" if path.endswith("/") and str(joined) != "/" else str(joined)

    async def _home_of(self, user: str) -> str:
        home = await self._bench.change("home", user)
        if not home.startswith("/"):
            raise BuildFailed(f"the image does not say where the home of its user is: {user}", self._number)
        return home

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


def with_words(context: Context, step: Step) -> Context:
    """What a step that only says how others run leaves to them."""
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
