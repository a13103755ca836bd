"""A child process that is forked and not executed: what both have loaded lies in memory once.

See: ADR 0013, for what a fork shares and why that is no secret.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Iterable

from cloche_server.isolation import syscalls

_TAKEN_OVER = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
"""Signals that the parent handles, and the child does not."""


def fork(run: Callable[[], int], *, kept: Collection[int] = (), standard_error: int | None = None) -> int:
    """Start a process that calls `run` and ends with the status it returns; return its id.

    Args:
        run: Called in the child.
        kept: Descriptors that stay open there, besides the three standard ones.
        standard_error: What the child has as such; None: the parent's.

    Requires: one thread.
    Leaves: the child in a process group of its own, with nothing on its standard input and output.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else both would write what still waits
    # Not before the child has handlers of its own: the parent's would tell the parent.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN_OVER)
    try:
        # SAFETY: one thread, so no lock is held that nobody would ever release. The child never leaves
        # `_live`, hence runs no clean-up of the parent's.
        pid = os.fork()
        if pid == 0:
            _live(run, mask, kept, standard_error)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _live(
    run: Callable[[], int], mask: Iterable[int], kept: Collection[int], standard_error: int | None
) -> None:
    """Be the child, to the end of the process. Never returns."""
    status = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C at the terminal reaches the parent alone
        signal.set_wakeup_fd(-1)
        for number in _TAKEN_OVER:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _open_standard(standard_error)
        # SAFETY: what a fork hands down goes: the lock on the state folder would outlive its holder, for one.
        syscalls.close_all_but({0, 1, 2, *kept})
        status = run()
    except BaseException:  # noqa: BLE001 - the process ends here, and somebody has to hear of it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _open_standard(standard_error: int | None) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    if standard_error is not None:
        os.dup2(standard_error, 2)
