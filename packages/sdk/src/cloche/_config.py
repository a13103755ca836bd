"""Where the server is and who asks: options, then `CLOCHE_*`, then `E2B_*` variables, then defaults."""

from __future__ import annotations

import functools
import os
import ssl
from dataclasses import dataclass, field, replace
from typing import Final, TypedDict
from urllib.parse import urlsplit

from cloche.errors import InvalidArgument, Unauthenticated, UnsupportedOption

DEFAULT_API_URL: Final = "http://127.0.0.1:3000"
DEFAULT_REQUEST_TIMEOUT_S: Final = 60.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class ConnectionOptions(TypedDict, total=False):
    """Options that every call to the server takes.

    Attributes:
        api_key: Key of the control plane; `CLOCHE_API_KEY` or `E2B_API_KEY`.
        api_url: Base URL of the control plane; `CLOCHE_API_URL` or `E2B_API_URL`.
        sandbox_url: Base URL of all sandboxes; `CLOCHE_SANDBOX_URL` or `E2B_SANDBOX_URL`; else the API's.
        domain: Domain of public ports when the server names none; `CLOCHE_DOMAIN` or `E2B_DOMAIN`.
        request_timeout: Seconds for one request that is not a stream; 0 for no limit.
        headers: Headers sent along to the control plane.
    """

    api_key: str | None
    api_url: str | None
    sandbox_url: str | None
    domain: str | None
    request_timeout: float | None
    headers: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class Connection:
    """Resolved options; everything a request needs to know besides its own content."""

    api_key: str = field(repr=False)
    api_url: str = DEFAULT_API_URL
    sandbox_url: str = DEFAULT_API_URL
    domain: str = ""
    request_timeout_s: float | None = DEFAULT_REQUEST_TIMEOUT_S
    headers: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine and spoken to in plain http: then no proxy is asked."""
        parts = urlsplit(self.api_url)
        return parts.scheme == "http" and (parts.hostname or "") in _LOOPBACK

    def timeout_s(self, request_timeout: float | None) -> float | None:
        """Return the seconds for one request: the call's own value wins, and 0 means no limit."""
        if request_timeout is None:
            return self.request_timeout_s
        return request_timeout or None

    def with_options(self, options: ConnectionOptions) -> Connection:
        """Return a connection in which the given options replace what was resolved before."""
        changed = resolve({**self._as_options(), **_given(options)})
        return replace(changed, headers={**self.headers, **changed.headers})

    def _as_options(self) -> ConnectionOptions:
        return {
            "api_key": self.api_key,
            "api_url": self.api_url,
            "sandbox_url": self.sandbox_url,
            "domain": self.domain,
            "request_timeout": self.request_timeout_s or 0.0,
        }


def resolve(options: ConnectionOptions) -> Connection:
    """Return a connection from options and environment.

    Raises:
        Unauthenticated: There is no API key.
        InvalidArgument: A URL is not an absolute http(s) URL.
        UnsupportedOption: An option that does not exist: it must not be dropped silently.
    """
    unknown = sorted(set(options) - ConnectionOptions.__optional_keys__)
    if unknown:
        raise UnsupportedOption(f"unknown option: {unknown[0]}", hint="see cloche.ConnectionOptions")
    api_key = options.get("api_key") or _variable("API_KEY")
    if not api_key:
        raise Unauthenticated(
            "no api key",
            hint="set CLOCHE_API_KEY or E2B_API_KEY; the server keeps its first key in STATE/api-key",
        )
    api_url = _url(options.get("api_url") or _variable("API_URL") or DEFAULT_API_URL)
    request_timeout = options.get("request_timeout")
    return Connection(
        api_key=api_key,
        api_url=api_url,
        sandbox_url=_url(options.get("sandbox_url") or _variable("SANDBOX_URL") or api_url),
        domain=options.get("domain") or _variable("DOMAIN") or "",
        request_timeout_s=DEFAULT_REQUEST_TIMEOUT_S if request_timeout is None else request_timeout or None,
        headers=dict(options.get("headers") or {}),
    )


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Trust what the system trusts, and `SSL_CERT_FILE`. Made once: loading the certificates takes 20 ms."""
    return ssl.create_default_context()


def _given(options: ConnectionOptions) -> ConnectionOptions:
    given: ConnectionOptions = options.copy()
    for name in ("api_key", "api_url", "sandbox_url", "domain", "request_timeout", "headers"):
        if given.get(name) is None:
            given.pop(name, None)
    return given


def _variable(name: str) -> str:
    return os.environ.get(f"CLOCHE_{name}") or os.environ.get(f"E2B_{name}") or ""


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise InvalidArgument(f"not an http url: {text}", hint="write it as http://127.0.0.1:3000")
    return text.rstrip("/")
