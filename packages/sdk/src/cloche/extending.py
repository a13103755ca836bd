"""For clients built on this one: the parts of the sync client that a subclass needs."""

from __future__ import annotations

from cloche._callbacks import Callback
from cloche._config import resolve
from cloche._either import Either
from cloche._requests import SandboxRecord, create_body
from cloche._sync.client import Client
from cloche._sync.files import Files
from cloche._sync.sandbox import new_sandbox, set_timeout_by_id

__all__ = [
    "Callback",
    "Client",
    "Either",
    "Files",
    "SandboxRecord",
    "create_body",
    "new_sandbox",
    "resolve",
    "set_timeout_by_id",
]
