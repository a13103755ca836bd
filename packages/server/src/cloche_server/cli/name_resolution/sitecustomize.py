"""Lets Python programs find a Cloche server on this machine by the names below its domain.

Imported by the interpreter where `cloche tls init` had its folder put on PYTHONPATH. The variable
CLOCHE_RESOLVE is `DOMAIN=ADDRESS`: names at and below DOMAIN lead to ADDRESS, others go the usual way. For
this program only: no file of the system changes. Standard library, Python 3.8 and newer.
"""
# pyright: basic
# It stands before functions of the standard library and takes whatever they take.

import importlib
import os
import socket
import sys
from functools import wraps
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _teach(domain: str, address: str) -> None:
    usual = socket.getaddrinfo

    @wraps(usual)
    def getaddrinfo(host, *args, **options):  # noqa: ANN001, ANN002, ANN003, ANN202
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
        if isinstance(name, str):
            name = name.rstrip(".").lower()
            if name == domain or name.endswith("." + domain):
                host = address
        return usual(host, *args, **options)

    socket.getaddrinfo = getaddrinfo


def _go_on() -> None:
    """Import the sitecustomize that this one hides, if there is one."""
    hidden = [path for path in sys.path if Path(path or ".").resolve() != _HERE]
    own, own_path = sys.modules.pop("sitecustomize", None), sys.path
    sys.path = hidden
    try:
        importlib.import_module("sitecustomize")
    except ImportError:
        if own is not None:
            sys.modules["sitecustomize"] = own
    finally:
        sys.path = own_path


_domain, _, _address = os.environ.get("CLOCHE_RESOLVE", "").partition("=")
if _domain and _address:
    _teach(_domain.lower(), _address)
_go_on()
