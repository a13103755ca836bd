"""One request over plain HTTP: read, checked, and written anew. No input or output.

A connection carries one request: what follows its body is never passed on, so that a second request cannot
go where only the first one may, and what the server reads is framed by us, not by the sandbox.
See: RFC 9112 3.2, 6.3, 11.
"""

from __future__ import annotations

import re

import h11

MAX_HEAD_BYTES = 64 * 1024
_HOST = re.compile(r"(.+?)(:[0-9]{1,5})?\Z")
_DROPPED = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te"))


class BadRequest(ValueError):  # noqa: N818 - named after the status
    """Not a request that can be checked; it was not passed on."""


class PlainRequest:
    """The request of one connection. Feed what the sandbox sends; send on what comes out."""

    def __init__(self) -> None:
        """Nothing has been read yet."""
        self._from_client = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._to_server = h11.Connection(h11.CLIENT)
        self._head: h11.Request | None = None
        self.is_complete = False
        """Whether all of the request has come."""
        self.wants_upgrade = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the sandbox, `b""` at their end; return what is to be sent to the server.

        Raises:
            BadRequest: The request is malformed or can be read in two ways.
        """
        try:
            self._from_client.receive_data(data)
            return self._events()
        except h11.ProtocolError as error:
            raise BadRequest(str(error)) from error

    @property
    def host(self) -> str | None:
        """The name in the request's head, without a port; None while the head is incomplete."""
        if self._head is None:
            return None
        value = next((value for name, value in self._head.headers if name == b"host"), b"")
        matched = _HOST.match(value.decode("latin-1"))
        if matched is None:
            raise BadRequest("no host")
        return matched[1]

    @property
    def after_upgrade(self) -> bytes:
        """What the sandbox has sent behind a request to upgrade."""
        return self._from_client.trailing_data[0]

    def _events(self) -> bytes:
        out = b""
        while not self.is_complete:
            event = self._from_client.next_event()
            if event is h11.NEED_DATA:
                break
            match event:
                case h11.Request():
                    self._head = event
                    out += self._to_server.send(self._checked(event)) or b""
                case h11.Data():
                    out += self._to_server.send(h11.Data(data=event.data)) or b""
                case h11.EndOfMessage():
                    out += self._to_server.send(h11.EndOfMessage(headers=event.headers)) or b""
                    self.is_complete = True
                case _:
                    raise BadRequest("the connection ended before the request")
        return out

    def _checked(self, head: h11.Request) -> h11.Request:
        names = [name for name, _ in head.headers]
        if names.count(b"host") != 1:
            raise BadRequest("not exactly one host")
        if b"content-length" in names and b"transfer-encoding" in names:
            raise BadRequest("two framings")
        if not head.target.startswith(b"/") and head.target != b"*":
            raise BadRequest("not a path")
        self.wants_upgrade = b"upgrade" in names and self.body_is_empty(names)
        kept = [
            (name, value)
            for name, value in head.headers.raw_items()
            if name.lower() not in _DROPPED and (self.wants_upgrade or name.lower() != b"upgrade")
        ]
        connection = b"Upgrade" if self.wants_upgrade else b"close"
        return h11.Request(
            method=head.method, target=head.target, headers=[*kept, (b"Connection", connection)]
        )

    @staticmethod
    def body_is_empty(names: list[bytes]) -> bool:
        """Whether a request with these fields has no body."""
        return b"content-length" not in names and b"transfer-encoding" not in names
