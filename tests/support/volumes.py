"""Volumes of a real server, as raw requests make and use them."""

from typing import Any, NamedTuple

import httpx

from cloche import Sandbox
from tests.support.fixtures import connect_options
from tests.support.server import Server


class Volume(NamedTuple):
    """One volume of a server."""

    server: Server
    id: str
    name: str
    token: str

    def content(self, method: str, resource: str, path: str, **options: Any) -> httpx.Response:
        """One request about its content, with its own token unless another is given."""
        token = options.pop("token", self.token)
        params = {"path": path, **options.pop("params", {})}
        headers = {"Authorization": f"Bearer {token}"}
        url = f"/volumecontent/{self.id}/{resource}"
        return self.server.request(method, url, key="", params=params, headers=headers, **options)

    def write(self, path: str, data: bytes, **params: Any) -> httpx.Response:
        """Upload a file."""
        return self.content("PUT", "file", path, content=data, params=params)

    def read(self, path: str) -> bytes:
        """Download a file."""
        answer = self.content("GET", "file", path)
        assert answer.status_code == 200, answer.text
        return answer.content

    def remove(self, *, expected: int = 204) -> None:
        """Delete the volume."""
        answer = self.server.request("DELETE", f"/volumes/{self.id}")
        assert answer.status_code == expected, answer.text


def make(server: Server, name: str, **options: Any) -> Volume:
    """Make a volume."""
    answer = server.request("POST", "/volumes", json={"name": name}, **options)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    return Volume(server, made["volumeID"], made["name"], made["token"])


def ask_for_sandbox(server: Server, mounts: dict[str, str], **options: Any) -> httpx.Response:
    """Ask for a sandbox with volumes, by path and name."""
    listed = [{"name": name, "path": path} for path, name in mounts.items()]
    body = {"templateID": "base", "timeout": 600, "volumeMounts": listed}
    return server.request("POST", "/v2/sandboxes", json=body, **options)


def sandbox_with(server: Server, mounts: dict[str, str]) -> Sandbox:
    """Make a sandbox with volumes, by path and name."""
    answer = ask_for_sandbox(server, mounts)
    assert answer.status_code == 201, answer.text
    return connect_options(server, Sandbox.connect, answer.json()["sandboxID"], timeout=600)
