"""How `cloche template build PATH` builds: files and steps to the server, its log back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from cloche_server.cli.build_progress import BuildProgress
from cloche_server.cli.remote import Remote
from cloche_server.templates.dockerfile.parser import parse
from cloche_server.templates.dockerfile.translate import Translated, Translator
from cloche_server.templates.steps import DEFAULT_READY
from cloche_wire.build_context import Context
from cloche_wire.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from rich.console import Console

    from cloche_server.templates.steps import Description

POLL_S = 0.2
_FILES = ("e2b.Dockerfile", "Dockerfile")


class Wish(NamedTuple):
    """What the caller of the command asks for."""

    name: str
    """With its tag, or without one."""
    tags: tuple[str, ...] = ()
    start_cmd: str = ""
    ready_cmd: str = ""
    cpu_count: int | None = None
    memory_mib: int | None = None
    no_cache: bool = False
    build_args: tuple[str, ...] = ()
    target: str = ""
    preload: tuple[str, ...] = ()
    """Python modules that sandboxes have imported before anybody asks, beside those of the base."""
    isolation: str = ""


class Built(NamedTuple):
    """What came out."""

    template_id: str
    build_id: str
    took_s: float


def find_dockerfile(path: Path, chosen: str = "") -> Path:
    """Return the Dockerfile of a folder: the one that is named, else `e2b.Dockerfile`, else `Dockerfile`.

    Raises:
        NotFound: It is not there.
    """
    names = (chosen,) if chosen else _FILES
    for name in names:
        if (found := path / name).is_file():
            return found
    raise NotFound(f"no {' and no '.join(names)} in {path}", hint="name one with --file")


def of_dockerfile(dockerfile: Path, scratch: Path, wish: Wish) -> Translated:
    """Translate a Dockerfile, whose folder is what it copies from; archives go to `scratch`.

    Raises:
        DockerfileError: It is refused, by its line.
    """
    translator = Translator(Context(dockerfile.parent, scratch), _build_args(wish.build_args))
    return translator.translate(parse(dockerfile.read_text()), wish.target)


def build(
    remote: Remote,
    translated: Translated,
    wish: Wish,
    console: Console,
    send_more: Callable[[str], object] = lambda _: None,
) -> Built:
    """Build a template, and show what happens; return when it is ready.

    `send_more` sends what is no file of a context, for the template of that id.

    Raises:
        InvalidArgument: A step failed; its output was shown.
        Unavailable: The server cannot be reached.
    """
    began = time.monotonic()
    with BuildProgress(console) as progress:
        asked = {
            "name": wish.name,
            "tags": list(wish.tags),
            "cpuCount": wish.cpu_count,
            "memoryMB": wish.memory_mib,
        }
        ids = remote.ask("POST", "/v3/templates", asked)
        template_id, build_id = str(ids["templateID"]), str(ids["buildID"])
        _send_files(remote, template_id, translated, progress)
        send_more(template_id)
        path = f"/templates/{template_id}/builds/{build_id}"
        remote.ask("POST", f"/v2{path}", _with_wishes(translated.description, wish))
        for entry in follow(remote, path):
            progress.show(entry)
    return Built(template_id, build_id, time.monotonic() - began)


def follow(remote: Remote, path: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a build's log until it is ready.

    Raises:
        InvalidArgument: It has failed; all of its log was yielded before.
    """
    seen = 0
    while True:
        status = remote.ask("GET", f"{path}/status", logsOffset=seen)
        yield from status["logEntries"]
        seen += len(status["logEntries"])
        if status["logEntries"] or status["status"] in ("waiting", "building"):
            if not status["logEntries"]:
                time.sleep(POLL_S)
            continue
        if status["status"] == "ready":
            return
        reason = status.get("reason", {})
        raise InvalidArgument(reason.get("message", "the build failed"))


def _send_files(remote: Remote, template_id: str, translated: Translated, progress: BuildProgress) -> None:
    for packed in translated.archives:
        link = remote.ask("GET", f"/templates/{template_id}/files/{packed.files_hash}")
        if not link["present"]:
            size = packed.path.stat().st_size
            progress.line(f"sending files: {size / (1 << 20):.1f} MiB", "dim")
            with packed.path.open("rb") as file:
                remote.send(link["url"], file, size)


def _with_wishes(description: Description, wish: Wish) -> Description:
    start = wish.start_cmd or description.start_cmd
    ready = wish.ready_cmd or description.ready_cmd or (DEFAULT_READY if start else "")
    return msgspec.structs.replace(
        description,
        start_cmd=start,
        ready_cmd=ready,
        force=wish.no_cache or description.force,
        preload=list(dict.fromkeys((*description.preload, *wish.preload))),
        isolation=wish.isolation or description.isolation,
    )


def _build_args(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [word.partition("=") for word in given]
    if bad := [name for name, equals, _ in pairs if not equals]:
        raise InvalidArgument(f"not NAME=value: {bad[0][:80]!r}")
    return {name: value for name, _, value in pairs}
