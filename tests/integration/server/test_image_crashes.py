"""What is left of an image that is being fetched when its build is stopped, or a part of the server dies."""

import json
from collections.abc import Iterator

import pytest
from tests.support import small_roots
from tests.support.fixtures import NEEDS_A_SERVER, running
from tests.support.jailed import jailed
from tests.support.oci_images import Images
from tests.support.registry import Registry
from tests.support.server import Server
from tests.support.template_requests import build, request
from tests.support.waiting import until

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("skopeo", "musl"), pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    images = Images()
    images.image("alpine", "3", [images.layer(small_roots.alpine_like())])
    endless = images.layer(small_roots.Tar().add("endless", b"1").bytes())
    images.image("endless", "1", [endless])
    with Registry(images).running() as made:
        made.stalls.add(endless["digest"])
        yield made


@pytest.fixture
def server(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("endless") / "state"
    state.mkdir()
    settings = f"[builds]\ninsecure_registries = {json.dumps([registry.host])}\n"
    (state / "config.toml").write_text(settings)
    with running(state) as made:
        yield made


def _fetching(server: Server, registry: Registry) -> None:
    """Return while an image is being fetched that never ends."""
    registry.asked.clear()
    request(server, "endless", fromImage=f"{registry.host}/endless:1")
    until(registry.blobs_sent, within_s=20, what="the image being fetched")
    assert jailed()


def _nothing_left(server: Server) -> bool:
    return not jailed() and not list((server.state / "pulls").iterdir())


def test_a_newer_build_ends_what_the_older_one_fetches(server: Server, registry: Registry) -> None:
    _fetching(server, registry)
    assert build(server, "endless", fromImage=f"{registry.host}/alpine:3").is_ready
    until(lambda: _nothing_left(server), within_s=10, what="the end of the jail")


@pytest.mark.parametrize("part", ["api", "node"])
def test_a_part_that_dies_leaves_no_jail(server: Server, registry: Registry, part: str) -> None:
    """The end of the api's link ends it, and so does the node's; what lay there is removed, now or later."""
    _fetching(server, registry)
    server.kill_part(part)
    until(lambda: _nothing_left(server), within_s=10, what="the end of the jail")
    assert build(server, "after", fromImage=f"{registry.host}/alpine:3").is_ready
