"""Builds of templates over REST, as every client makes them."""

from typing import Any, NamedTuple

from tests.support.server import Server
from tests.support.waiting import until


class Built(NamedTuple):
    """What came of a build."""

    template_id: str
    build_id: str
    error: str
    """Empty: it is ready."""
    step: str
    log: str

    @property
    def is_ready(self) -> bool:
        """Whether sandboxes can be made of it."""
        return not self.error


def request(server: Server, name: str, *, key: str | None = None, **description: Any) -> str:
    """Begin a build; the path of its resource."""
    asked = server.request("POST", "/v3/templates", key=key, json={"name": name, "memoryMB": 512}).json()
    where = f"/templates/{asked['templateID']}/builds/{asked['buildID']}"
    started = server.request("POST", f"/v2{where}", key=key, json=description)
    assert started.status_code == 202, started.text
    return where


def build(server: Server, name: str, *, key: str | None = None, **description: Any) -> Built:
    """Build a template of this description, to its end."""
    where = request(server, name, key=key, **description)
    answers: list[dict[str, Any]] = []

    def has_ended() -> bool:
        answers.append(server.request("GET", f"{where}/status", key=key).json())
        return answers[-1]["status"] in {"ready", "error"}

    until(has_ended, within_s=120, what=f"the end of build {name}")
    last = answers[-1]
    reason = last.get("reason") or {}
    log = "\n".join(entry["message"] for entry in last["logEntries"])
    return Built(last["templateID"], last["buildID"], reason.get("message", ""), reason.get("step", ""), log)
