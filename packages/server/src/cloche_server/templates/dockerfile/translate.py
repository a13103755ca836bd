"""From instructions to the description of a template: stages, steps, the start command.

Nothing has run when an instruction is refused. What a Dockerfile means is what Docker means by it, but for
two things, which are those of E2B's own translation: at the end it is the user `user` who works, unless
`USER` says otherwise, and the last `ENTRYPOINT` and `CMD` are the start command, which runs from the
beginning in every sandbox.
"""

from __future__ import annotations

import platform
import posixpath
import re
import shlex
from typing import NamedTuple

from cloche_server.templates.dockerfile.parser import Heredoc, Instruction, split_words
from cloche_server.templates.dockerfile.problem import refuse
from cloche_server.templates.steps import DEFAULT_READY, MODE, Description, Stage, Step, expand
from cloche_wire.build_context import Context, Packed

_NUMBER = re.compile(r"\d+\Z")
_URL = re.compile(r"https?://", re.IGNORECASE)
_PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64"}
_NO_EFFECT = frozenset(("LABEL", "EXPOSE", "MAINTAINER"))
_HINTS = {
    "VOLUME": "make the folder with RUN mkdir; volumes are mounted when a sandbox is created",
    "HEALTHCHECK": "a template has a ready command: --ready-cmd",
    "STOPSIGNAL": "sandboxes are killed, not stopped",
    "ONBUILD": "write the instruction into the Dockerfiles that are based on this one",
}
_DOCKER_SHELL = ["/bin/sh", "-c"]


class Translated(NamedTuple):
    """What a Dockerfile comes to."""

    description: Description
    archives: tuple[Packed, ...]
    """What its steps copy from; each has to be sent before the build starts."""


class _Start(NamedTuple):
    """What CMD or ENTRYPOINT says."""

    text: str
    is_list: bool


class _Open:
    """A stage that is being read."""

    def __init__(self, name: str, *, image: str = "", stage: str = "") -> None:
        self.name = name
        self.image = image
        self.stage = stage
        self.steps: list[Step] = []
        self.known: dict[str, str] = {}
        """Variables whose value the Dockerfile itself says."""
        self.needs: set[str] = {stage} if stage else set()
        self.entrypoint: _Start | None = None
        self.command: _Start | None = None
        self.has_user = self.has_workdir = False


class Translator:
    """Reads the instructions of one Dockerfile in their order."""

    def __init__(self, context: Context, build_args: dict[str, str] | None = None) -> None:
        """Copy from this folder; `build_args` take the place of the defaults of `ARG`."""
        self._context = context
        self._build_args = build_args or {}
        self._global: dict[str, str] = {}
        self._stages: list[_Open] = []
        self._images: list[_Open] = []
        """Images that files are copied from and no stage is made of: stages without steps."""
        self._archives: dict[str, Packed] = {}

    def translate(self, instructions: list[Instruction], target: str = "") -> Translated:
        """Return what they come to, up to the stage `target`, or the last one.

        Raises:
            DockerfileError: One cannot be carried out here; the message names its line.
        """
        for one in instructions:
            if one.name == "FROM":
                self._from(one)
            elif one.name == "ARG" and not self._stages:
                self._global |= self._arguments(one, self._global)
            elif not self._stages:
                raise refuse(one.line, f"{one.name} before the first FROM")
            else:
                self._instruction(self._stages[-1], one)
        if not self._stages:
            raise refuse(instructions[-1].line, "no FROM")
        last = self._stages[-1]
        if target:
            last = self._stage_of(instructions[-1], target)
        return self._finished(last)

    def _finished(self, last: _Open) -> Translated:
        needed, waiting = set[str](), [last.name]
        every = [*self._images, *self._stages]
        by_name = {stage.name: stage for stage in every}
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed.add(name)
                waiting += by_name[name].needs
        stages = [
            Stage(stage.name, stage.image, from_stage=stage.stage, steps=stage.steps)
            for stage in every
            if stage.name in needed and stage is not last
        ]
        steps = list(last.steps)
        # As E2B's own translation has it: a sandbox's user is not root unless its author says so.
        if not last.has_user:
            steps.append(Step("USER", ["user"]))
        if not last.has_workdir:
            steps.append(Step("WORKDIR", ["/home/user"]))
        takes_words = last.entrypoint is None or last.entrypoint.is_list
        parts = (last.entrypoint, last.command if takes_words else None)
        start = " ".join(part.text for part in parts if part is not None)
        used = {step.files_hash for part in (*stages, last) for step in part.steps}
        description = Description(
            last.image,
            from_stage=last.stage,
            steps=steps,
            start_cmd=start,
            ready_cmd=DEFAULT_READY if start else "",
            stages=stages,
        )
        return Translated(description, tuple(p for key, p in self._archives.items() if key in used))

    # --- stages --------------------

    def _from(self, one: Instruction) -> None:
        if set(one.flags) - {"platform"}:
            raise refuse(one.line, f"unknown flag of FROM: --{next(iter(one.flags))}")
        self._check_platform(one)
        words = [expand(word, self._global) for word in split_words(one)]
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as"):
            raise refuse(one.line, "FROM takes an image, and maybe AS and a name")
        name = words[2].lower() if len(words) == 3 else str(len(self._stages))
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) or any(name == s.name for s in self._stages):
            raise refuse(one.line, f"not a new name of a stage: {name[:80]!r}")
        earlier = next((stage for stage in self._stages if stage.name == words[0].lower()), None)
        stage = _Open(name, stage=earlier.name) if earlier else _Open(name, image=words[0])
        if earlier:
            stage.known = dict(earlier.known)
            stage.has_user, stage.has_workdir = earlier.has_user, earlier.has_workdir
            stage.entrypoint, stage.command = earlier.entrypoint, earlier.command
        else:
            stage.steps += [
                Step("USER", ["root"]), Step("WORKDIR", ["/"]), Step("SHELL", list(_DOCKER_SHELL))
            ]  # fmt: skip
        self._stages.append(stage)

    def _check_platform(self, one: Instruction) -> None:
        wanted = expand(one.flags.get("platform", ""), self._global)
        own = f"linux/{_PLATFORMS.get(platform.machine(), platform.machine())}"
        if wanted and wanted != own:
            raise refuse(one.line, f"this machine is {own}, not {wanted[:80]}")

    def _stage_of(self, one: Instruction, name: str) -> _Open:
        """A stage by its name or number, or an image that takes the place of one."""
        lowered = name.lower()
        for number, stage in enumerate(self._stages):
            if lowered == stage.name or (_NUMBER.match(name) and int(name) == number):
                return stage
        raise refuse(one.line, f"no such stage: {name[:80]!r}")

    # --- instructions --------------------

    def _instruction(self, stage: _Open, one: Instruction) -> None:
        if one.name in _NO_EFFECT:
            return
        act = {
            "RUN": self._run,
            "COPY": self._copy,
            "ADD": self._copy,
            "ENV": self._env,
            "ARG": self._arg,
            "WORKDIR": self._workdir,
            "USER": self._user,
            "SHELL": self._shell,
            "CMD": self._command,
            "ENTRYPOINT": self._command,
        }.get(one.name)
        if act is None:
            raise refuse(one.line, f"not supported: {one.name[:40]}", hint=_HINTS.get(one.name))
        if one.flags and one.name not in ("COPY", "ADD"):
            raise refuse(one.line, f"not supported: {one.name} --{next(iter(one.flags))}")
        if not one.text:
            raise refuse(one.line, f"{one.name} says nothing")
        act(stage, one)

    def _run(self, stage: _Open, one: Instruction) -> None:
        if (words := one.words_of_json) is not None:
            if not words:
                raise refuse(one.line, "RUN takes a command")
            stage.steps.append(Step("EXEC", words))
            return
        stage.steps.append(Step("RUN", [_script(one)]))

    def _env(self, stage: _Open, one: Instruction) -> None:
        pairs = _pairs(one)
        stage.steps.append(Step("ENV", [word for pair in pairs for word in pair]))
        before = dict(stage.known)
        stage.known |= {name: expand(value, before) for name, value in pairs}

    def _arg(self, stage: _Open, one: Instruction) -> None:
        given = self._arguments(one, {**self._global, **stage.known})
        if given:
            literal = [word for name, value in given.items() for word in (name, value.replace("$", r"\$"))]
            stage.steps.append(Step("ARG", literal))
        # A variable of the environment comes before one of the build.
        stage.known = given | stage.known

    def _arguments(self, one: Instruction, known: dict[str, str]) -> dict[str, str]:
        given: dict[str, str] = {}
        for word in split_words(one):
            name, has_default, default = word.partition("=")
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise refuse(one.line, f"not a name of a variable: {name[:80]!r}")
            if name in self._build_args:
                given[name] = self._build_args[name]
            elif has_default:
                given[name] = expand(default, known | given)
            elif name in self._global:
                given[name] = self._global[name]
        return given

    def _workdir(self, stage: _Open, one: Instruction) -> None:
        stage.has_workdir = True
        stage.steps.append(Step("WORKDIR", [" ".join(split_words(one))]))

    def _user(self, stage: _Open, one: Instruction) -> None:
        name = expand(" ".join(split_words(one)), stage.known)
        if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*(:[A-Za-z0-9_][\w.-]*)?", name):
            raise refuse(one.line, f"not a user: {name[:80]!r}")
        stage.has_user = True
        stage.steps.append(Step("USER", [name]))

    def _shell(self, stage: _Open, one: Instruction) -> None:
        words = one.words_of_json
        if not words:
            raise refuse(one.line, 'SHELL takes a list: ["/bin/bash", "-c"]')
        stage.steps.append(Step("SHELL", words))

    def _command(self, stage: _Open, one: Instruction) -> None:
        words = one.words_of_json
        said = _Start(one.text if words is None else shlex.join(words), words is not None)
        if one.name == "CMD":
            stage.command = said
        else:
            stage.entrypoint = said

    # --- files --------------------

    def _copy(self, stage: _Open, one: Instruction) -> None:
        known = {"chown", "chmod", "link", *(("from",) if one.name == "COPY" else ("checksum",))}
        if unknown := set(one.flags) - known:
            raise refuse(one.line, f"not supported: {one.name} --{min(unknown)}")
        owner = expand(one.flags.get("chown", ""), stage.known) or "0:0"
        mode = expand(one.flags.get("chmod", ""), stage.known)
        if mode and not MODE.match(mode):
            raise refuse(one.line, f"not a mode in octal: {mode[:20]!r}")
        if "link" in one.flags and one.flags["link"] not in ("", "true", "false"):
            raise refuse(one.line, "--link is true or false")
        words = one.words_of_json or split_words(one)
        if len(words) < 2:
            raise refuse(one.line, f"{one.name} takes sources and a destination")
        *sources, target = words
        sources = [expand(source, stage.known) for source in sources]
        if len(sources) > 1 and not target.endswith("/"):
            raise refuse(one.line, "with more than one source the destination ends in a slash")
        if "from" in one.flags:
            self._copy_from(stage, one, sources, (target, owner, mode))
        elif one.heredocs:
            self._copy_heredocs(stage, one, (target, owner, mode))
        elif one.name == "ADD":
            for source in sources:
                self._add(stage, one, source, (target, owner, mode))
        else:
            self._copy_files(stage, one, sources, (target, owner, mode))

    def _copy_files(
        self, stage: _Open, one: Instruction, sources: list[str], to: tuple[str, str, str]
    ) -> None:
        try:
            packed = self._context.pack(sources)
        except FileNotFoundError as error:
            raise refuse(one.line, f"no such file in the folder of the build: {error}") from error
        except ValueError as error:
            raise refuse(one.line, str(error)) from error
        self._step(stage, packed, to)

    def _step(self, stage: _Open, packed: Packed, to: tuple[str, str, str]) -> None:
        target, owner, mode = to
        self._archives.setdefault(packed.files_hash, packed)
        stage.steps.append(Step("COPY", [packed.source, target, owner, mode], packed.files_hash))

    def _copy_heredocs(self, stage: _Open, one: Instruction, to: tuple[str, str, str]) -> None:
        for heredoc in one.heredocs:
            content = heredoc.content if heredoc.is_quoted else expand(heredoc.content, stage.known)
            self._step(stage, self._context.pack_text(heredoc.name, content), to)

    def _copy_from(
        self, stage: _Open, one: Instruction, sources: list[str], to: tuple[str, str, str]
    ) -> None:
        name = expand(one.flags["from"], stage.known)
        earlier = next((known for known in self._stages[:-1] if known.name == name.lower()), None)
        if earlier is None and _NUMBER.match(name) and int(name) < len(self._stages) - 1:
            earlier = self._stages[int(name)]
        if earlier is None:
            earlier = _Open(f"image/{len(self._images)}", image=name)
            self._images.append(earlier)
        stage.needs.add(earlier.name)
        for source in sources:
            absolute = posixpath.join("/", source)
            stage.steps.append(Step("COPY_FROM", [earlier.name, absolute, *to]))

    def _add(self, stage: _Open, one: Instruction, source: str, to: tuple[str, str, str]) -> None:
        if not _URL.match(source):
            try:
                unpacked = self._context.unpack_of(source)
            except (FileNotFoundError, ValueError):
                unpacked = None  # said better by what copies it
            if unpacked is None:
                self._copy_files(stage, one, [source], to)
            else:
                self._step(stage, unpacked, (to[0].rstrip("/") + "/", to[1], to[2]))
            return
        target, owner, mode = to
        if target.endswith("/"):
            target += posixpath.basename(source.partition("?")[0].partition("#")[0])
        if target.endswith("/"):
            raise refuse(one.line, f"the address names no file: {source[:200]}")
        checksum = one.flags.get("checksum", "")
        if checksum and not re.fullmatch(r"sha256:[0-9a-f]{64}", checksum):
            raise refuse(one.line, "a checksum is sha256: and 64 hex digits")
        words = [source, target, owner, mode or "0600", checksum.removeprefix("sha256:")]
        stage.steps.append(Step("EXEC", ["/bin/sh", "-euc", _FETCH, "ADD", *words]))


_FETCH = """
mkdir -p "$(dirname "$2")"
if command -v curl >/dev/null; then curl -fsSL --retry 2 -o "$2" "$1"
elif command -v wget >/dev/null; then wget -q -O "$2" "$1"
else echo "ADD of an address needs curl or wget in the image" >&2; exit 1
fi
[ -z "$5" ] || echo "$5  $2" | sha256sum -c - >/dev/null
chown "$3" "$2"
chmod "$4" "$2"
"""


def _script(one: Instruction) -> str:
    """What a shell runs for a RUN in its shell form."""
    if not one.heredocs:
        return one.text
    first = one.heredocs[0]
    if not re.fullmatch(r"<<-?[\"']?[A-Za-z_][\w.]*[\"']?", one.text):
        return "\n".join([one.text, *(f"{doc.content}{doc.name}" for doc in one.heredocs)])
    if not first.content.startswith("#!"):
        return first.content
    mark = _mark_beyond(first)
    return (
        f'script=$(mktemp) && cat >"$script" <<\'{mark}\' && chmod 700 "$script" && "$script"; '
        f'status=$?; rm -f "$script"; (exit $status)\n{first.content}{mark}'
    )


def _mark_beyond(heredoc: Heredoc) -> str:
    mark = heredoc.name
    while mark in heredoc.content.splitlines():
        mark += "_"
    return mark


def _pairs(one: Instruction) -> list[tuple[str, str]]:
    """Names and values of ENV, of both forms."""
    words = split_words(one)
    if "=" not in words[0]:
        if len(words) < 2:
            raise refuse(one.line, "ENV takes names and values")
        return [(words[0], " ".join(words[1:]))]
    pairs = [tuple(word.partition("=")[::2]) for word in words if "=" in word]
    if len(pairs) != len(words) or not all(re.fullmatch(r"[A-Za-z_]\w*", name) for name, _ in pairs):
        raise refuse(one.line, f"ENV takes NAME=value: {one.text[:80]!r}")
    return [(name, value) for name, value in pairs]
