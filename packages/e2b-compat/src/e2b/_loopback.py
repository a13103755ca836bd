"""Names under `.localhost` are this machine (RFC 6761, 6.3); the system's resolver often does not know.

Browsers and curl answer such names themselves, glibc asks the name servers. A local server's public ports
have such names, and programs pass them to any HTTP library: so the answer has to come from
`socket.getaddrinfo`.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

_SUFFIX = ".localhost"
_lock = threading.Lock()
_installed = False


def is_loopback_name(host: object) -> bool:
    """Whether the host is a name under `.localhost`; `localhost` itself is left to the system."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    return isinstance(host, str) and host.rstrip(".").lower().endswith(_SUFFIX)


def install() -> None:
    """Let `socket.getaddrinfo` answer names under `.localhost` with loopback; once per process."""
    global _installed
    with _lock:
        if _installed:
            return
        _installed = True
    ask_system = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, family: int = 0, *rest: Any, **more: Any) -> Any:  # noqa: ANN401
        if is_loopback_name(host):
            host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        return ask_system(host, port, family, *rest, **more)

    socket.getaddrinfo = getaddrinfo
