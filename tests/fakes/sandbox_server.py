"""A server as the client sees it: canned answers by method and path, and a record of what was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from cloche_wire import connect, proto_json
from cloche_wire.errors import ClocheError
from cloche_wire.execution import Event, event_line
from cloche_wire.messages.process import DataEvent, EndEvent, ProcessEvent, StartEvent, StartResponse
from cloche_wire.messages.schema import Message

Answer = httpx.Response | Callable[[httpx.Request], httpx.Response]

RECORD = {
    "sandboxID": "iabc",
    "templateID": "t1",
    "clientID": "c",
    "envdVersion": "0.6.13",
    "envdAccessToken": "token-of-iabc",
    "domain": "cloche.localhost:3000",
}
DETAIL = {
    "sandboxID": "iabc",
    "templateID": "t1",
    "alias": "code-interpreter-v1",
    "clientID": "c",
    "startedAt": "2026-01-02T03:04:05.678Z",
    "endAt": "2026-01-02T03:09:05Z",
    "cpuCount": 2,
    "memoryMB": 2048,
    "diskSizeMB": 512,
    "state": "running",
    "envdVersion": "0.6.13",
    "metadata": {"a": "b"},
    "domain": None,
    "isolation": "gvisor",
}
GONE = {"sandboxId": "iabc", "message": "The sandbox was not found", "code": 502}


@dataclass
class SandboxServer:
    """Answers each route with its list in order; the last answer is given again and again."""

    routes: dict[str, list[Answer]] = field(default_factory=dict[str, list[Answer]])
    requests: list[httpx.Request] = field(default_factory=list[httpx.Request])

    def on(self, route: str, *answers: Answer) -> None:
        """Answer `METHOD /path` with these."""
        self.routes[route] = list(answers)

    def asked(self, route: str) -> list[httpx.Request]:
        """Return the requests of one route."""
        return [request for request in self.requests if _route(request) == route]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answers = self.routes.get(_route(request))
        if answers is None:
            return httpx.Response(404, json={"code": 404, "message": f"no route: {_route(request)}"})
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, httpx.Response):
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        return answer(request)


def _route(request: httpx.Request) -> str:
    return f"{request.method} {request.url.path}"


def body_of(request: httpx.Request) -> object:
    """Return the JSON of a request; of a streaming call, that of its one envelope."""
    content = request.content
    if request.headers.get("content-type") == connect.STREAM_JSON:
        (envelope,) = connect.EnvelopeDecoder(1 << 20).feed(content)
        content = envelope.data
    return json.loads(content)


def unary(message: Message) -> httpx.Response:
    """A good answer of the daemon."""
    return httpx.Response(
        200, content=proto_json.encode(message), headers={"content-type": connect.UNARY_JSON}
    )


def refused(error: ClocheError) -> httpx.Response:
    """A refusal of the daemon."""
    return httpx.Response(connect.http_status(error), content=connect.error_body(error))


def stream(*messages: Message, error: ClocheError | None = None, cut: bool = False) -> httpx.Response:
    """A streamed answer of the daemon, with its end or cut off before it."""
    frames = [connect.encode_envelope(0, proto_json.encode(message)) for message in messages]
    if not cut:
        frames.append(connect.end_stream(error))
    return httpx.Response(200, content=b"".join(frames), headers={"content-type": connect.STREAM_JSON})


def process(*output: DataEvent, pid: int = 7, exit_code: int = 0) -> list[StartResponse]:
    """The events of a process from its start to its end."""
    end = EndEvent(
        exit_code, True, f"exit status {exit_code}", f"exit status {exit_code}" if exit_code else None
    )
    events = [
        ProcessEvent(start=StartEvent(pid)),
        *(ProcessEvent(data=data) for data in output),
        ProcessEvent(end=end),
    ]
    return [StartResponse(event) for event in events]


def lines(*events: Event) -> httpx.Response:
    """A run of code."""
    return httpx.Response(200, content=b"".join(event_line(event) for event in events))
