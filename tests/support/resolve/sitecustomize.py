"""On PYTHONPATH of a client: names below localhost lead to this machine (RFC 6761); glibc asks a server."""

import socket
from typing import Any

_look_up = socket.getaddrinfo


def _getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    is_local = isinstance(name, str) and name.rstrip(".").endswith(".localhost")
    return _look_up("127.0.0.1" if is_local else host, *rest, **options)


socket.getaddrinfo = _getaddrinfo
