"""A registry on loopback that is read only: the part of the distribution specification that pulls need."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.oci_images import Images

_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)\Z")


class Registry:
    """What it has, who may have it, and what it was asked for."""

    def __init__(self, images: Images, users: dict[str, str] | None = None) -> None:
        """Serve these images, to everybody where there are no users; not yet."""
        self.images = images
        self.users = users or {}
        self.asked: list[tuple[str, str]] = []
        """Method and path of each request, without those that were sent away."""
        self.stalls: set[str] = set()
        """Digests of blobs that begin and never end."""
        self.redirects: dict[str, str] = {}
        """Digests of blobs that lie elsewhere, and where."""
        self.host = ""
        """Address and port, while it runs."""

    def blobs_sent(self) -> list[str]:
        """Digests of the blobs that were fetched."""
        return [
            path.rpartition("/")[2] for method, path in self.asked if method == "GET" and "/blobs/" in path
        ]

    @contextmanager
    def running(self) -> Iterator["Registry"]:
        """Serve in this block, on a free port of 127.0.0.1."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Nothing is printed."""

            def do_GET(self) -> None:
                registry._answer(self)

            do_HEAD = do_GET  # noqa: N815 - the base class's name

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.host = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        if self.users and not self._may(handler.headers.get("Authorization", "")):
            refused = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="test"')
            _send(handler, "application/json", json.dumps(refused).encode())
            return
        self.asked.append((handler.command, handler.path))
        found = _PATH.match(handler.path)
        if handler.path == "/v2/":
            handler.send_response(200)
            _send(handler, "application/json", b"{}")
        elif found is None:
            _unknown(handler, "NOT_FOUND", "no such path")
        elif found["kind"] == "manifests":
            self._manifest(handler, found["repository"], found["reference"])
        elif (place := self.redirects.get(found["reference"])) is not None:
            handler.send_response(307)
            handler.send_header("Location", place)
            _send(handler, "text/plain", b"")
        elif found["reference"] in self.stalls:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.rfile.read(1)  # until it goes away
        elif (blob := self.images.blobs.get(found["reference"])) is not None:
            handler.send_response(200)
            _send(handler, "application/octet-stream", blob)
        else:
            _unknown(handler, "BLOB_UNKNOWN", "blob unknown to registry")

    def _manifest(self, handler: BaseHTTPRequestHandler, repository: str, reference: str) -> None:
        manifest = self.images.manifests.get((repository, reference))
        if manifest is None:
            _unknown(handler, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        handler.send_response(200)
        _send(handler, *manifest)

    def _may(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        name, _, password = base64.b64decode(encoded).decode().partition(":")
        return bool(password) and self.users.get(name) == password


def _unknown(handler: BaseHTTPRequestHandler, code: str, message: str) -> None:
    handler.send_response(404)
    _send(handler, "application/json", json.dumps({"errors": [{"code": code, "message": message}]}).encode())


def _send(handler: BaseHTTPRequestHandler, media_type: str, content: bytes) -> None:
    handler.send_header("Content-Type", media_type)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    if handler.command != "HEAD":
        with suppress(ConnectionError):  # who has had enough goes away
            handler.wfile.write(content)
