"""A network namespace that plays the whole machine, so that a test's links and rules are nobody else's."""

import contextlib
import os
from collections.abc import Iterator

from cloche_server.isolation import syscalls


@contextlib.contextmanager
def entered() -> Iterator[None]:
    """Have the calling thread and the programs it starts in a fresh namespace; all in it goes at the end."""
    namespace = syscalls.new_network_namespace()
    try:
        with syscalls.network_namespace(namespace):
            yield
    finally:
        os.close(namespace)
