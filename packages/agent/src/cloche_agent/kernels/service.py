"""The code interpreter on port 49999: routes of wire.md 4.

`/execute` takes the sandbox's access token. The routes of contexts do not ask for it, because the official
clients do not send it there, as in E2B's cloud; a wrong one is refused all the same. Where that is too open,
the sandbox's traffic token closes the whole port at the edge. Before `/init` only `/health` answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cloche_agent.http import Request, Response, json_response
from cloche_agent.kernels.contexts import Context
from cloche_agent.kernels.kernel import KernelStartError, account
from cloche_agent.kernels.languages import LANGUAGES, PYTHON, Language, find_language, normalised
from cloche_wire.errors import InvalidArgument, NotFound, Unauthenticated, Unavailable

if TYPE_CHECKING:
    from cloche_agent.init import Sandbox
    from cloche_agent.process.spawn import Reaper

LARGEST_BODY_BYTES = 16 << 20
DEFAULT_CWD = "/home/user"
_DEFAULT = "default"


class InterpreterService:
    """Contexts by id, and the routes to them. `run` must be running while `handle` is called."""

    def __init__(self, sandbox: Sandbox, reaper: Reaper, kernels: str | Path) -> None:
        """Remember what kernels need.

        Args:
            sandbox: Its token, and the environment of kernels.
            reaper: Tells how kernels end; installed by the caller.
            kernels: Folder of the kernel programs.
        """
        self._sandbox = sandbox
        self._reaper = reaper
        self._kernels = str(kernels)
        self._tasks: asyncio.TaskGroup | None = None
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}
        """By name of their language: those that code without a context runs in."""
        sandbox.on_restore.append(self._renew)
        sandbox.on_quiesce.append(self._forget_all)

    async def run(self) -> None:
        """Own the kernels until cancelled, then end them. Only one that `/prepare` wants starts unasked.

        Any other starts with the first request for it: 60 MiB and 0.3 s of a core that who runs nothing but
        commands never pays.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await self._sandbox.wanted.wait()
                self._show_boot_contexts()
                context = self._default_context(PYTHON)
                context.begin(self._sandbox.imports)
                with contextlib.suppress(KernelStartError):
                    await context.ready()
                self._sandbox.prepared.set()
                await asyncio.Event().wait()
            finally:
                self._tasks = None
                self._forget_all()

    async def handle(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            Unauthenticated: Before `/init`, or the token is wrong, or missing where it is asked for.
            InvalidArgument: The body is not what the route takes.
            NotFound: No such route.
        """
        if request.path == "/health":
            return json_response("OK")
        token = request.headers.get("x-access-token")
        is_open = request.path != "/execute" and token is None and self._sandbox.token is not None
        if not is_open and not self._sandbox.authorized(token):
            raise Unauthenticated("access token is missing or wrong")
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["execute"]:
                return await self.execute(request)
            case "GET", ["contexts"]:
                self._show_boot_contexts()
                return json_response([_described(context) for context in self._contexts.values()])
            case "POST", ["contexts"]:
                return await self._create(request)
            case "POST", ["contexts", context_id, "restart"]:
                return await self._restart(context_id)
            case "DELETE", ["contexts", context_id]:
                return self._remove(context_id)
            case _:
                raise NotFound("Not Found")

    async def execute(self, request: Request) -> Response:
        """`POST /execute`: run code and stream its events as lines of JSON (`run.py`, `results.py`)."""
        fields = _object(await request.read(LARGEST_BODY_BYTES))
        code = _text(fields, "code")
        if code is None:
            raise InvalidArgument("code is missing")
        context_id, language = _text(fields, "context_id"), _text(fields, "language")
        variables = _variables(fields)
        if context_id and language:
            return _plain(400, "Only one of context_id or language can be provided")
        context = None
        try:
            context = self._find(context_id) if context_id else self._default_context(_language(language))
            if context is None:
                return _plain(404, f"Context {context_id} not found")
            if not context.turn.locked():
                await context.ready()
        except KernelStartError as error:
            if context is not None and self._is_implied(context):
                self._discard(context)  # it never ran anything, and nobody has asked for it to be listed
            return _plain(500, str(error))
        headers = [("content-type", "application/json"), ("cache-control", "no-store")]
        return Response(200, headers, context.execute(code, variables, request.was_cut))

    async def _create(self, request: Request) -> Response:
        fields = _object(await request.read(LARGEST_BODY_BYTES))
        name, cwd = _text(fields, "language"), _text(fields, "cwd") or default_cwd()
        self._show_boot_contexts()  # first in every list
        try:
            context = self._made(_language(name), cwd)
        except KernelStartError as error:
            return _plain(500, str(error))
        try:
            await context.ready()
        except BaseException as error:
            context.close()  # also when the client has gone: it never learned the id
            if isinstance(error, KernelStartError):
                return _plain(500, str(error))
            raise
        self._contexts[context.id] = context
        return json_response(_described(context))

    async def _restart(self, context_id: str) -> Response:
        context = self._find(context_id)
        if context is None:
            return _plain(404, f"Context {context_id} not found")
        try:
            await context.restart()
        except KernelStartError as error:
            return _plain(500, f"Failed to restart context {context_id}: {error}")
        return json_response(None)

    def _remove(self, context_id: str) -> Response:
        context = self._find(context_id)
        if context is None:
            return _plain(404, f"Context {context_id} not found")
        self._discard(context)
        return json_response(None)

    # --- contexts

    def _forget_all(self) -> None:
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()
        self._defaults.clear()

    async def _renew(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for context in self._contexts.values():
                tasks.create_task(context.renew())

    def _find(self, context_id: str) -> Context | None:
        if context_id == _DEFAULT:
            return self._default_context(PYTHON)
        return self._contexts.get(context_id)

    def _discard(self, context: Context) -> None:
        context.close()
        self._contexts.pop(context.id, None)
        if context is self._defaults.get(context.language.name):
            del self._defaults[context.language.name]  # the next one is made when it is needed

    def _is_implied(self, context: Context) -> bool:
        """Whether it was made only because code named its language."""
        language = context.language
        return context is self._defaults.get(language.name) and not language.is_listed_at_boot

    def _show_boot_contexts(self) -> None:
        """Make the contexts that exist from the start, in order. Only a run starts the kernel of most."""
        for language in LANGUAGES:
            is_new = language.is_listed_at_boot and language.name not in self._defaults
            if is_new and (language is PYTHON or language.is_there(self._sandbox.env)):
                self._default_context(language)

    def _default_context(self, language: Language) -> Context:
        context = self._defaults.get(language.name)
        if context is None:
            context = self._made(language, default_cwd())
            self._defaults[language.name] = context
            if language is PYTHON:
                self._contexts = {context.id: context, **self._contexts}
            else:
                self._contexts[context.id] = context
        return context

    def _made(self, language: Language, cwd: str) -> Context:
        if self._tasks is None:
            raise Unavailable("the code interpreter is not running")
        return Context(language, cwd, self._sandbox, self._reaper, self._tasks, self._kernels)


def default_cwd() -> str:
    """Where code starts unless it is told: E2B's folder; in a template without it the home of who runs it."""
    return next((path for path in (DEFAULT_CWD, account().home) if Path(path).is_dir()), "/")


def _language(name: str | None) -> Language:
    """The language that a request names.

    Raises:
        KernelStartError: There is no kernel for it.
    """
    found = find_language(name)
    if found is None:
        raise KernelStartError(f"No such kernel named {normalised(name)[:64]}")
    return found


def _described(context: Context) -> dict[str, str]:
    return {"id": context.id, "language": context.language.name, "cwd": context.cwd}


def _plain(status: int, text: str) -> Response:
    return Response(status, [("content-type", "text/plain; charset=utf-8")], text.encode())


# --- request bodies


def _object(body: bytes) -> dict[str, object]:
    try:
        loaded: object = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("body is not JSON") from error
    if not isinstance(loaded, dict):
        raise InvalidArgument("body is not a JSON object")
    return cast("dict[str, object]", loaded)


def _text(fields: dict[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise InvalidArgument(f"not a string: {name}")


def _variables(fields: dict[str, object]) -> dict[str, str]:
    found = fields.get("env_vars")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidArgument("not an object: env_vars")
    for name, value in cast("dict[str, object]", found).items():
        if not name or "=" in name or "\0" in name or not isinstance(value, str) or "\0" in value:
            raise InvalidArgument(f"not an environment variable: {name[:100]}")
    return cast("dict[str, str]", found)
