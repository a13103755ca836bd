"""The sandbox with a code interpreter."""

from __future__ import annotations

from typing import ClassVar

from e2b.sandbox import Sandbox as BaseSandbox


class Sandbox(BaseSandbox):
    """A sandbox of the template that runs code; see `e2b.Sandbox`."""

    default_template: ClassVar[str] = "code-interpreter-v1"
