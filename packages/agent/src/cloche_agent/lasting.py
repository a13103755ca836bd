"""Answers that outlast their connection: a checkpoint resets every one, also in the sandbox that goes on.

The edge names a request by a header. Where its connection is taken by a checkpoint, the work for it goes on,
and the edge fetches the rest of the answer over a new connection: `GET /answers/NAME?from=OFFSET`, a switch
of protocols, after which come the very bytes that the old one would have carried. What was sent and may not
have arrived is kept for that. In a sandbox that was restored nobody comes: the node's word ends the wait.
See: docs/adr/0021-answers-outlast-a-checkpoint.md.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, ClassVar, Protocol

from cloche_agent.http import AbortConnection, Response, error_response
from cloche_wire.errors import ClocheError, Conflict, InvalidArgument, NotFound, Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloche_agent.http import Handler, Request

PREFIX = "/answers/"
_KEEP_S = 15.0
"""How long the edge may take. It comes at once; a sandbox that is short of processors lets it wait."""
_TAIL_BYTES = 1 << 20
"""What is kept of an answer beside what has not left this process: more than the kernel takes, which is twice
the 256 KiB that were asked for and a piece."""
_MOST_BYTES = 32 << 20
"""For all answers together; beyond it new ones are not kept."""
_REMEMBERED = 4096
_LONGEST_NAME = 64
_MOST_DIGITS = 18


class Owner(Protocol):
    """Who writes an answer."""

    def go_on(self, transport: asyncio.Transport) -> None:
        """Serve this connection instead of the one that was cut."""
        ...

    def give_up(self, *, was_cut: bool) -> None:
        """Nobody comes for it: the client has gone, or it was another sandbox's, and this one was cut off."""
        ...


class Answer:
    """The transport of one answer, which remembers what it has sent; see `asyncio.Transport`."""

    def __init__(self, answers: Answers, name: str, owner: Owner, transport: asyncio.Transport) -> None:
        """Stand between an owner and its connection."""
        self._answers = answers
        self._owner = owner
        self._transport: asyncio.Transport | None = transport
        self.name = name
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._sent = 0
        self._is_over = False
        self._expiry: asyncio.TimerHandle | None = None
        self.ended = asyncio.Event()
        """Set when nothing more can come of it."""

    # --- for its owner

    def write(self, data: bytes) -> None:
        """Send, or keep until somebody comes."""
        self._tail.append(data)
        self._tail_bytes += len(data)
        self._answers.kept_bytes += len(data)
        self._sent += len(data)
        unsent = 0
        if self._transport is not None:
            self._transport.write(data)
            unsent = self._transport.get_write_buffer_size()
        while self._tail_bytes - len(self._tail[0]) >= _TAIL_BYTES + unsent:
            self._drop_first()

    def close(self) -> None:
        """The answer is whole; where its connection was cut, it is still kept for who comes."""
        self._is_over = True
        if self._transport is not None:
            self._transport.close()
            self._end()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is not None and self._transport.is_closing()

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        if self._transport is not None:
            self._transport.resume_reading()

    @property
    def is_waiting(self) -> bool:
        """Whether it has no connection."""
        return self._transport is None

    def wait(self) -> None:
        """Its connection was cut by a checkpoint: keep it for who comes, for a while."""
        self._transport = None
        self._expiry = asyncio.get_running_loop().call_later(self._answers.keep_s, self.expire)

    def expire(self, *, was_cut: bool = False) -> None:
        """Nobody comes; see `Owner.give_up`."""
        if self.is_waiting and not self.ended.is_set():
            self._end()
            self._owner.give_up(was_cut=was_cut)

    # --- for who comes

    def tail_from(self, offset: int) -> bytes:
        """What was sent from there on.

        Raises:
            NotFound: Not all of it is kept.
        """
        missing = self._sent - offset
        if not 0 <= missing <= self._tail_bytes:
            raise NotFound("what is missing of this answer is not kept any more")
        return b"".join(self._tail)[self._tail_bytes - missing :]

    def continue_on(self, transport: asyncio.Transport, offset: int) -> None:
        """Have the owner go on over another connection, whose reading is paused.

        Raises:
            NotFound: Not all that is missing is kept.
        """
        assert self._transport is None
        missing = self.tail_from(offset)
        if self._expiry is not None:
            self._expiry.cancel()
        self._transport = transport
        self._owner.go_on(transport)  # first: from here on it is told when too much is queued
        if missing:
            transport.write(missing)
        if self._is_over:
            self.close()

    def _drop_first(self) -> None:
        size = len(self._tail.popleft())
        self._tail_bytes -= size
        self._answers.kept_bytes -= size

    def _end(self) -> None:
        if not self.ended.is_set():
            self.ended.set()
            self._answers.forget(self)
            self._answers.kept_bytes -= self._tail_bytes
            self._tail.clear()
            self._tail_bytes = 0


class Answers:
    """All that are being given, and the names of those that have been."""

    header: ClassVar[str] = "cloche-answer"
    """Of a request: its name, which nobody else uses and nobody guesses."""

    def __init__(self, keep_s: float = _KEEP_S) -> None:
        """None yet."""
        self.keep_s = keep_s
        self.restores = 0
        """How often this process has been restored: a connection that is older than that is of no client."""
        self.kept_bytes = 0
        self._current: dict[str, Answer] = {}
        self._past: OrderedDict[str, None] = OrderedDict()

    def begin(self, name: str | None, owner: Owner, transport: asyncio.Transport) -> Answer | None:
        """The transport of the answer to a request; None for one that ends with its connection.

        Raises:
            AbortConnection: The request has been sent again, for it seemed to be lost.
        """
        if name is None or not 0 < len(name) <= _LONGEST_NAME:
            return None
        if name in self._current or name in self._past:
            raise AbortConnection
        if self.kept_bytes > _MOST_BYTES:
            return None
        answer = self._current[name] = Answer(self, name, owner, transport)
        return answer

    def forget(self, answer: Answer) -> None:
        """It is over; only its name is remembered, so that nobody takes its request for one that was lost."""
        self._current.pop(answer.name, None)
        self._remember(answer.name)

    def _remember(self, name: str) -> None:
        self._past[name] = None
        if len(self._past) > _REMEMBERED:
            self._past.popitem(last=False)

    def waiting(self) -> list[Answer]:
        """Those that have lost their connection."""
        return [answer for answer in self._current.values() if answer.is_waiting]

    async def restored(self) -> None:
        """Give up what waits: this is another sandbox by now, or the same one at another time."""
        self.restores += 1
        for answer in self.waiting():
            answer.expire(was_cut=True)

    def find(self, name: str, offset: int) -> Continuation | None:
        """The way to go on with an answer; None where no request of that name has ever come.

        Raises:
            Conflict: It has not lost its connection, as far as we know.
            NotFound: It is over, or bytes are missing that nobody has any more.
        """
        answer = self._current.get(name)
        if answer is None and name in self._past:
            raise NotFound("this answer is over")
        if answer is None:
            self._remember(name)  # it may yet come: its bytes, of a connection that is no more
            return None
        if not answer.is_waiting:
            raise Conflict("this answer has a connection")
        answer.tail_from(offset)
        return Continuation(answer, offset)


class Continuation:
    """The rest of an answer, for the connection that has asked for it."""

    def __init__(self, answer: Answer, offset: int) -> None:
        """Nothing happens before `join`."""
        self._answer = answer
        self._offset = offset

    async def join(self, client: asyncio.Transport, early: bytes) -> None:
        """Carry the rest over this connection, to its end; what has come from it early is dropped."""
        del early
        try:
            if self._answer.is_waiting:
                self._answer.continue_on(client, self._offset)
                await self._answer.ended.wait()
                return
        except NotFound:
            pass
        client.abort()  # another one was faster, or too much has been said since

    def close(self) -> None:
        """Nothing is held."""


def continuing(answers: Answers, authorized: Callable[[str | None], bool], handler: Handler) -> Handler:
    """Wrap a handler so that the rest of its answers can be fetched, by who has the sandbox's token."""

    async def handle(request: Request) -> Response:
        if not request.path.startswith(PREFIX):
            return await handler(request)
        try:
            if not authorized(request.headers.get("x-access-token")):
                raise Unauthenticated("access token is missing or wrong")
            offset = _count(request.parameter("from"))
            rest = answers.find(request.path.removeprefix(PREFIX), offset)
        except ClocheError as error:
            return error_response(error)
        if rest is None:
            # In so many words: an agent that knows of no names says 404 too.
            return Response(404, [(answers.header, "unknown")])
        return Response(101, [("connection", "upgrade"), ("upgrade", answers.header)], tunnel=rest)

    return handle


def _count(text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise InvalidArgument("from is not a count of bytes")
    return int(text)
