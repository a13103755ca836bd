"""Layers made one by a node: what a sandbox over the new one sees, and what is left of one that failed."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.integration.node.building import building, layer_files
from tests.integration.node.conftest import NEEDS_A_NODE, NodeProcess, newest_build
from tests.support.source import ROOT

from cloche_server.config import Builds
from cloche_server.node import build_messages as messages
from cloche_wire.errors import ClocheError, InvalidArgument, NotFound, TooLarge

pytestmark = [pytest.mark.anyio, NEEDS_A_NODE]

LOOK = """
cat /kept /both; ls /folder; test ! -e /etc/motd; stat -c "%U %a" /kept
test /one -ef /two && echo same
"""


async def squash(node: NodeProcess, *layers: str) -> messages.LayerMade:
    request = messages.SquashLayers("team", layers, (newest_build(),))
    return await node.call("squash", request, messages.LayerMade)


async def chain(node: NodeProcess, *scripts: str) -> list[str]:
    """What these leave one after the other, uppermost first."""
    layers: list[str] = []
    for script in scripts:
        async with building(node, *layers) as build:
            assert (await build.shell(script)).status == 0
            layers.insert(0, (await build.commit()).layer_id)
    return layers


async def test_a_sandbox_over_the_one_layer_sees_what_it_saw_over_all_of_them(node: NodeProcess) -> None:
    """Content, owners, links, what was removed and what was made anew; the old layers stay as they are."""
    layers = await chain(
        node,
        "mkdir /folder; echo old >/folder/old; echo first >/both; rm /etc/motd; echo gone >/gone",
        "rm -r /folder; mkdir /folder; echo new >/folder/new; rm /gone; echo some >/one; ln /one /two",
        "echo x >/kept; chown user /kept; chmod 4711 /kept; echo second >>/both",
    )
    async with building(node, *layers) as build:
        before = await build.shell(LOOK)
    made = await squash(node, *layers)
    assert (made.team_id, made.entries > 0) == ("team", True)
    async with building(node, made.layer_id) as build:
        after = await build.shell(f"{LOOK}test ! -e /gone")
    assert (before.status, before) == (0, after)
    assert before.stdout == ["x", "first", "second", "new", "user 4711", "same"]
    old = [one for one in await node.call("layers", {}, list[messages.LayerMade]) if one.layer_id in layers]
    assert len(old) == 3
    assert (layer_files(node, old[0]) / "both").read_text() == "first\n"


@pytest.mark.parametrize("case", ["one", "root", "unknown", "large"])
async def test_what_cannot_be_made_one_is_refused_and_leaves_nothing(
    own_node: NodeProcess, case: str
) -> None:
    """By its type, and no layer is half there."""
    layers = await chain(own_node, "head -c 900000 /dev/urandom >/a", "head -c 900000 /dev/urandom >/b")
    asked: dict[str, tuple[list[str], type[ClocheError]]] = {
        "one": (layers[:1], InvalidArgument),
        "root": ([layers[0], newest_build()], InvalidArgument),
        "unknown": ([layers[0], f"layer-{'0' * 32}"], NotFound),
        "large": (layers, TooLarge),
    }
    names, error = asked[case]
    before = sorted(path.name for path in (own_node.state / "layers").iterdir())
    own_node.kill()
    own_node.config = msgspec.structs.replace(own_node.config, builds=Builds(max_layer_mib=1))
    own_node.start()
    with pytest.raises(error):
        await squash(own_node, *names)
    assert sorted(path.name for path in (own_node.state / "layers").iterdir()) == before


@pytest.mark.parametrize("seed", range(40))
def test_layers_of_random_histories_show_the_same_when_some_are_one(seed: int, tmp_path: Path) -> None:
    """Wherever in the chain these are; compared with what overlayfs shows of them: names, content, owners,
    modes, attributes, times, hard links, and what is hidden below."""
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.support.overlays"]
    done = subprocess.run(
        [*argv, str(seed), str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    entries, before, after = json.loads(done.stdout)
    assert entries > 5, "something to look at"
    assert after == before
