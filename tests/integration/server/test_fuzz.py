"""Random calls to the daemon of a live sandbox, through the edge: refused in words, none an accident.

In a sandbox and not in tests/unit, because some of these calls remove and overwrite whatever they name.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.messages import messages
from tests.support import inside
from tests.support.fixtures import NEEDS_A_SERVER, MakeSandbox, connect_options
from tests.support.server import Server

from cloche import Sandbox
from cloche_wire import connect, proto_json, signature
from cloche_wire.messages import filesystem, process
from cloche_wire.messages.schema import Message, Rpc

pytestmark = [NEEDS_A_SERVER, pytest.mark.fuzz, pytest.mark.timeout(1800)]

RPCS = sorted((*process.RPCS.values(), *filesystem.RPCS.values()), key=lambda rpc: rpc.path)
ANSWER_S = 20.0
LIFE_S = 7200
ACCIDENT = b"internal error"
"""What the agent answers when something went wrong that nobody had thought of."""
NESTED = settings.default.max_examples // 4
FEW = settings(max_examples=NESTED, suppress_health_check=list(HealthCheck))

PATHS = st.one_of(
    st.sampled_from(
        ["", "/", ".", "..", "~", "~root", "a", "a/b", "/tmp/x", "/proc/self", "/dev/full", "/dev/zero"]
    ),
    st.sampled_from(
        ["/home/user/.bashrc", "/root/x", "/etc/passwd/x", "\0", "/" + "a/" * 3000, "x" * 300, "é/ü"]
    ),
    st.text(max_size=20),
)
TEXTS = st.text(max_size=10)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS, PATHS)
JSON = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXTS, inner)), max_leaves=8
)


class Daemon:
    """The daemon of one sandbox, spoken to without a client's manners."""

    def __init__(self, server: Server, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        connected = server.request(
            "POST", f"/v2/sandboxes/{sandbox.sandbox_id}/connect", json={"timeout": LIFE_S}
        )
        self.token = str(connected.json()["envdAccessToken"])
        routing = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
        self.http = httpx.Client(base_url=server.url, headers=routing, timeout=ANSWER_S, trust_env=False)

    def ask(self, method: str, path: str, *, token: bool = True, **options: Any) -> httpx.Response:
        """One request; fails where the answer is an accident of ours."""
        headers = {"X-Access-Token": self.token} if token else {}
        headers |= {"Connect-Timeout-Ms": "500"} | options.pop("headers", {})
        answer = self.http.request(method, path, headers=headers, **options)
        assert ACCIDENT not in answer.content, (method, path, options, answer.content)
        assert answer.status_code not in (502, 503), (method, path, options, answer.content)
        return answer


@pytest.fixture(scope="module")
def daemon(server: Server) -> Iterator[Daemon]:
    """One sandbox for the whole file: what it bears together is part of the claim."""
    sandbox = connect_options(server, Sandbox.create, timeout=LIFE_S)
    try:
        daemon = Daemon(server, sandbox)
        yield daemon
        daemon.http.close()
    finally:
        sandbox.kill()


def _with_paths(message: Message, data: st.DataObject) -> Message:
    """The message with likelier paths than random text."""
    fields = {name: data.draw(PATHS) for name in ("path", "source", "destination") if hasattr(message, name)}
    return type(message)(
        **{**{name: getattr(message, name) for name in message.__dataclass_fields__}, **fields}
    )


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)
@given(data=st.data())
@FEW
def test_calls_of_the_right_form_are_answered(daemon: Daemon, rpc: Rpc, data: st.DataObject) -> None:
    """Any message that the schema allows, with any path: done, or refused with a reason, within its time."""
    message = proto_json.encode(_with_paths(data.draw(messages(rpc.request)), data))
    is_stream = rpc.client_stream or rpc.server_stream
    body = connect.encode_envelope(0, message) if is_stream else message
    kind = connect.STREAM_JSON if is_stream else connect.UNARY_JSON
    answer = daemon.ask("POST", rpc.path, content=body, headers={"Content-Type": kind})
    if is_stream:
        envelopes = connect.EnvelopeDecoder(64 << 20).feed(answer.content)
        assert envelopes[-1].is_end
    elif answer.status_code != 200:
        assert set(answer.json()) == {"code", "message"}


@given(
    data=st.data(), kind=st.sampled_from([connect.UNARY_JSON, connect.STREAM_JSON, "application/proto", ""])
)
@FEW
def test_calls_of_no_form_are_refused(daemon: Daemon, data: st.DataObject, kind: str) -> None:
    """Random JSON, bytes and envelopes with random flags, lengths and deadlines to every method."""
    rpc = data.draw(st.sampled_from(RPCS))
    envelope = st.builds(
        lambda flags, body, wrong: connect.encode_envelope(flags, body)[: -wrong or None],
        st.sampled_from([0, 0, 0, 1, 2, 128]),
        st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=20)),
        st.integers(0, 2),
    )
    body = data.draw(st.one_of(st.lists(envelope, max_size=3).map(b"".join), st.binary(max_size=40)))
    deadline = data.draw(st.sampled_from(["1", "300", "-1", "x", "99999999999", ""]))
    headers = {"Content-Type": kind, "Connect-Timeout-Ms": deadline if kind else "300"}
    if deadline in ("", "99999999999") or not deadline.isdecimal():
        assert (
            daemon.ask("POST", rpc.path, content=body, headers=headers).status_code != 200
            or "connect" in kind
        )
    else:
        daemon.ask("POST", rpc.path, content=body, headers=headers)


@given(
    path=st.one_of(st.none(), PATHS),
    username=st.sampled_from([None, "", "user", "nobody-here", "a:b", "\0"]),
    kind=st.sampled_from(
        ["application/octet-stream", "multipart/form-data; boundary=b", "multipart/form-data", "x/y"]
    ),
    encoding=st.sampled_from([None, "gzip", "br", ""]),
    body=st.one_of(
        st.binary(max_size=30),
        PATHS.map(
            lambda path: (
                f'--b\r\nContent-Disposition: form-data; name="file"; filename="{path}"\r\n\r\nx\r\n--b--'
            )
        ),
    ),
    metadata=st.dictionaries(
        st.from_regex(r"[A-Za-z0-9-]{0,8}", fullmatch=True), st.text(st.characters(codec="ascii"), max_size=5)
    ),
)
@FEW
def test_uploads_and_downloads_of_any_form_are_answered(
    daemon: Daemon,
    path: str | None,
    username: str | None,
    kind: str,
    encoding: str | None,
    body: Any,
    metadata: dict[str, str],
) -> None:
    """POST, GET and HEAD /files with any path, user, kind of body, encoding and metadata."""
    params = {name: value for name, value in (("path", path), ("username", username)) if value is not None}
    headers = {"Content-Type": kind} | ({} if encoding is None else {"Content-Encoding": encoding})
    more = {
        f"X-Metadata-{key}": value
        for key, value in metadata.items()
        if value.isprintable() and value == value.strip()
    }
    content = body.encode("utf-8", "replace") if isinstance(body, str) else body
    posted = daemon.ask("POST", "/files", params=params, headers=headers | more, content=content)
    assert posted.status_code in (200, 400, 401, 403, 404, 409, 507)
    for method in ("HEAD", "GET"):
        answer = daemon.ask(method, "/files", params=params, headers={"Range": "bytes=0-99"})
        assert answer.status_code in (200, 206, 400, 401, 403, 404, 416)


@given(
    body=st.one_of(
        JSON,
        st.fixed_dictionaries(
            {},
            optional={
                "source_paths": st.one_of(JSON, st.lists(PATHS, max_size=3)),
                "destination": st.one_of(JSON, PATHS),
                "username": LEAVES,
            },
        ),
    )
)
@FEW
def test_compose_of_any_form_is_answered(daemon: Daemon, body: object) -> None:
    """POST /files/compose with JSON of any shape."""
    answer = daemon.ask("POST", "/files/compose", content=json.dumps(body).encode())
    assert answer.status_code in (200, 400, 401, 403, 404, 409, 507)


@given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from(["path", "username", "signature", "signature_expiration"]),
            st.sampled_from(["/etc/passwd", "user", "v1_x", "1", "", "99999999999999999999"]),
        ),
        max_size=5,
    ),
    method=st.sampled_from(["GET", "POST", "HEAD"]),
)
@FEW
def test_signed_queries_of_any_form_open_nothing(
    daemon: Daemon, pairs: list[tuple[str, str]], method: str
) -> None:
    """Without the token and without a right signature: 400, 401, or 429 when there were too many."""
    answer = daemon.ask(method, "/files", token=False, params=pairs)
    assert answer.status_code in (400, 401, 429)


def test_sandbox_is_well_after_all_of_it(daemon: Daemon, sandboxes: MakeSandbox) -> None:
    """It answers, runs a command, holds no descriptor and no process of what was asked of it."""
    fresh = descriptors(sandboxes())
    daemon.ask("POST", "/files", params={"path": "/tmp/fuzzed"}, content=b"x",
               headers={"Content-Type": "application/octet-stream"})  # fmt: skip
    signed = signature.sign("/tmp/fuzzed", "read", None, daemon.token)
    params = {"path": "/tmp/fuzzed", "signature": signed}
    assert daemon.ask("GET", "/files", token=False, params=params).content == b"x"
    assert inside.run(daemon.sandbox, "echo well").out == "well\n"
    for found in daemon.sandbox.commands.list():
        with contextlib.suppress(Exception):
            daemon.sandbox.commands.kill(found.pid)
    assert descriptors(daemon.sandbox) <= fresh + 6, inside.root(daemon.sandbox, "ls -l /proc/1/fd").out


def descriptors(sandbox: Sandbox) -> int:
    """Files and pipes that the agent holds: some for itself, two for each kernel, a few for a moment."""
    counted = inside.root(sandbox, "ls -l /proc/1/fd | grep -c -v -e socket -e anon_inode -e /dev/null")
    return int(counted.out)
