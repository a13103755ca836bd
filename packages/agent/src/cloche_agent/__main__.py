"""The agent as a program: PID 1 of a sandbox, or an ordinary process in tests.

    python -m cloche_agent --envd-fd 3 --interpreter-fd 4 [--kernels FOLDER]
    python -m cloche_agent --envd-port 49983 --interpreter-port 49999 [--kernels FOLDER]

The second form is for a sandbox with a network stack of its own: no socket of the host leads into it.
As PID 1 it collects every orphan and no signal from inside ends it; the sandbox ends when the node kills it.
Everything it will ever need is imported here, before the first request: later its own files may be hidden
from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cloche_agent.activity import ActivityHandler
from cloche_agent.envd import envd_handler
from cloche_agent.http import (
    Handler,
    HttpServer,
    Request,
    Response,
    json_response,
    listen_on,
    open_to_browsers,
)
from cloche_agent.init import Sandbox
from cloche_agent.kernels.service import InterpreterService
from cloche_agent.kernels.zygote import Zygote
from cloche_agent.lasting import Answers, continuing
from cloche_agent.pausable_loop import PausableLoop
from cloche_agent.process.spawn import Reaper
from cloche_agent.sudo import Sudo
from cloche_wire.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

_DEFAULT_KERNELS = "/.cloche/kernel"
_INTERPRETER_PORT = 49999
_PR_SET_DUMPABLE = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAPPED_BYTES = 2 << 20
_KEPT_BYTES = 2 << 20
"""Free memory at the end of the heap that is kept for the next buffers: all that an idle agent may waste."""
_USAGE = (
    "usage: cloche_agent --envd-fd N --interpreter-fd N [--kernels FOLDER] [--zygote-fd N --group-fds N,N]\n"
    "       cloche_agent --envd-port N --interpreter-port N [--kernels FOLDER]"
)


class _Options(NamedTuple):
    envd: socket.socket
    interpreter: socket.socket
    kernels_path: str
    zygote: Zygote | None

    @property
    def is_saved(self) -> bool:
        """Whether this may be written to disk: what has a network of its own is, with that."""
        return self.envd.family == socket.AF_INET


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until killed, or, when not PID 1, until SIGTERM; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n{_USAGE}\n")
        return 2
    os.umask(0o022)
    if os.getpid() == 1:
        # SAFETY: the token lies in this memory; nothing in the sandbox may trace it or read it through /proc.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        # What gVisor finds in an empty /tmp, so that it does not take it for a place to mount memory at; see
        # `cloche_server.isolation.gvisor.temporary`.
        with contextlib.suppress(OSError):
            Path("/tmp/.cloche").rmdir()  # noqa: S108 - the sandbox's
    keep_freed_memory()
    _raise_file_limit()
    # What is imported stays: out of the collector's sight a fork also shares more of it.
    gc.collect()
    gc.freeze()
    loop = partial(PausableLoop, is_saved=options.is_saved)
    with contextlib.suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_serve(options))
    return 0


def keep_freed_memory() -> None:
    """Have the allocator use large blocks again, rather than give each back and fetch a new one.

    By itself glibc maps what is larger than 128 KiB, and gives the heap's end back: each buffer is then made
    of fresh pages, at 2 µs a page on a virtual machine. Frames of a MB of output take 1.1 ms to build with
    this and 2.5 ms without.
    """
    # SAFETY: two numbers for the allocator; it takes them or refuses them.
    with contextlib.suppress(AttributeError):  # another C library
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        allocator.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _raise_file_limit() -> None:
    """Use every descriptor this process may have: 1024 are 255 processes that are being listened to.

    Programs get the limit that we were started with (`process/spawn.py`): select(2) in them cannot use more.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _parse(arguments: Sequence[str]) -> _Options:
    """By hand: argparse would be a tenth of this process's memory.

    Leaves: the sockets open that the arguments name.

    Raises:
        ValueError: Not what `_USAGE` says.
        OSError: A descriptor is no socket, or a port is taken.
    """
    known = {
        "--envd-fd": "", "--interpreter-fd": "", "--envd-port": "", "--interpreter-port": "",
        "--kernels": _DEFAULT_KERNELS, "--zygote-fd": "", "--group-fds": "",
    }  # fmt: skip
    for name, value in zip(arguments[::2], arguments[1::2], strict=False):
        if name not in known:
            raise ValueError(f"unknown option: {name}")
        known[name] = value
    if len(arguments) % 2:
        raise ValueError(f"option without a value: {arguments[-1]}")
    return _Options(
        _listener(known["--envd-fd"], known["--envd-port"]),
        _listener(known["--interpreter-fd"], known["--interpreter-port"]),
        known["--kernels"],
        _zygote(known["--zygote-fd"], known["--group-fds"]),
    )


def _listener(descriptor: str, port: str) -> socket.socket:
    """The socket that a service listens on: inherited, or where a port is named, made here."""
    return listen_on(int(port)) if port else _inherited(int(descriptor))


def _inherited(descriptor: int) -> socket.socket:
    """A listening socket that whoever started us has left open for us.

    Raises:
        OSError: The descriptor is no socket.
    """
    # SAFETY: close-on-exec from here on, so that no program of the sandbox ever holds a listener.
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def _zygote(descriptor: str, groups: str) -> Zygote | None:
    if not descriptor:
        return None
    numbers = [int(number) for number in groups.split(",") if number]
    for group in numbers:
        # SAFETY: no program of the sandbox may put itself or others into a group.
        os.set_inheritable(group, False)
    return Zygote(_inherited(int(descriptor)), numbers)


async def _serve(options: _Options) -> None:
    sandbox = Sandbox(zygote=options.zygote, is_saved=options.is_saved)
    logging.getLogger().addHandler(ActivityHandler(sandbox.activity))
    reaper = Reaper()
    reaper.install()
    _take_signals()
    kernels = InterpreterService(sandbox, reaper, options.kernels_path)
    # An ordinary process, in tests, has no sandbox around it: there "inside" is the whole machine.
    health, nothing = (_health, _nothing) if os.getpid() == 1 else (None, None)
    sudo = Sudo(reaper)
    sandbox.on_restore.append(sudo.look)
    answers = Answers() if options.is_saved else None
    if answers is not None:
        sandbox.on_restore.append(answers.restored)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_keep_up(kernels))
        tasks.create_task(sudo.serve())

        def serve(listener: socket.socket, handler: Handler, inside: Handler | None) -> None:
            handler = open_to_browsers(handler)
            if answers is not None:
                handler = continuing(answers, sandbox.authorized, handler)
            tasks.create_task(HttpServer(answers=answers).serve(listener, handler, inside=inside))

        serve(options.interpreter, kernels.handle, health)
        serve(options.envd, envd_handler(sandbox, reaper, tasks), nothing)
        if os.getpid() == 1 and options.interpreter.family == socket.AF_UNIX:
            tasks.create_task(_tell_health_inside())


async def _tell_health_inside() -> None:
    """Listen where programs of the sandbox look for the interpreter, and serve `_health`."""
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", _INTERPRETER_PORT))
        listener.listen()
    except OSError as error:
        listener.close()
        log.warning("the health of the interpreter is not told inside: %s", error)
        return
    await HttpServer().serve(listener, _health)


async def _health(request: Request) -> Response:
    """Answer `/health` of the interpreter to programs of the sandbox, as E2B's does, and nothing else.

    All other requests come through the edge, which knows who may send them.
    """
    if request.path != "/health":
        raise NotFound("Not Found")
    return json_response("OK")


async def _nothing(request: Request) -> Response:
    """Serve programs of the sandbox no request of the node's: not `/prepare`, nor the first `/init`."""
    raise NotFound("Not Found")


async def _keep_up(kernels: InterpreterService) -> None:
    try:
        await kernels.run()
    except Exception:
        log.exception("upkeep of the interpreter ended")  # files and processes are served all the same


def _take_signals() -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        # A handler that does nothing, not SIG_IGN: what is ignored stays so in every program that is started.
        loop.add_signal_handler(number, (lambda: None) if os.getpid() == 1 else task.cancel)


if __name__ == "__main__":
    sys.exit(main())
