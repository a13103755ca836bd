"""Files of a sandbox, as the documents read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, overload

from cloche.extending import Files as ClocheFiles


class Files(ClocheFiles):
    """Files whose `read` gives bytes that can be written to a file opened `wb`, or text when asked for."""

    @overload
    def read(
        self,
        path: str,
        format: Literal["bytes"] | None = None,
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        text: Literal[False] = False,
    ) -> bytes: ...
    @overload
    def read(
        self,
        path: str,
        format: Literal["text"],
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        text: bool = False,
    ) -> str: ...
    @overload
    def read(
        self,
        path: str,
        format: None = None,
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        text: Literal[True],
    ) -> str: ...
    @overload
    def read(
        self,
        path: str,
        format: Literal["stream"],
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        text: Literal[False] = False,
    ) -> Iterator[bytes]: ...
    # The documents' default is bytes, Cloche's is text.
    def read(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] | None = None,  # noqa: A002 - as documented
        user: str | None = None,
        request_timeout: float | None = None,
        *,
        text: bool = False,
    ) -> str | bytes | Iterator[bytes]:
        """Read a file: bytes by default, `str` with `text=True` or `format="text"`."""
        chosen = format or ("text" if text else "bytes")
        return super().read(path, chosen, user, request_timeout)
