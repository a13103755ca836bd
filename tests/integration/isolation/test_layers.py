"""Roots of several layers, and what a sandbox has written as a layer of others."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.integration.isolation.conftest import NEEDS_CONTAINERS, NEEDS_GVISOR, Workshop, plain_rootfs

from cloche_server.isolation.base import first_id
from cloche_server.isolation.overlay import MOST_LAYERS, UPPER

pytestmark = pytest.mark.anyio

_CHANGE = """
os.remove("/gone")
os.remove("/folder/old"); os.rmdir("/folder"); os.mkdir("/folder"); open("/folder/new", "w").write("new")
open("/changed", "a").write(" and changed")
open("/made", "w").write("made"); os.chown("/made", 33, 65535); os.chmod("/made", 0o4751)
os.symlink("/made", "/link")
os.mkdir("/deep"); os.makedirs("/deep/er/still")
result = os.stat("/made").st_uid
"""
_LOOK = """
made = os.stat("/made")
result = {
    "names": sorted(set(os.listdir("/")) - {"dev", "proc", "sys", "etc", ".cloche", "tmp"}),
    "folder": os.listdir("/folder"),
    "changed": open("/changed").read(),
    "made": [made.st_uid, made.st_gid, made.st_mode & 0o7777],
    "link": os.readlink("/link"),
    "mine": os.stat("/deep/er/still").st_uid,
}
"""
_EXPECTED = {
    "names": ["changed", "deep", "folder", "link", "made"],
    "folder": ["new"],
    "changed": "below and changed",
    "made": [33, 65535, 0o4751],
    "link": "/made",
    "mine": 0,
}


@pytest.fixture(
    params=[pytest.param("container", marks=NEEDS_CONTAINERS), pytest.param("gvisor", marks=NEEDS_GVISOR)]
)
def workshop(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def base(folder: Path) -> Path:
    root = plain_rootfs(folder / "base")
    (root / "gone").write_text("below")
    (root / "changed").write_text("below")
    (root / "folder").mkdir()
    (root / "folder" / "old").write_text("below")
    return root


async def written(workshop: Workshop, root: Path) -> Path:
    """The layer that a sandbox of that root leaves when it has ended."""
    sandbox = await workshop.start(layers=(root,), keeps_layer=True)
    assert sandbox.run(_CHANGE) == 33
    await workshop.driver.destroy(sandbox.spec.sandbox_id, sandbox.spec.folder, sandbox.init)
    return sandbox.spec.folder / UPPER


async def test_what_one_sandbox_has_written_is_a_layer_of_another(workshop: Workshop) -> None:
    """Owners, modes, links, what was removed and what was made anew: all as the first one left it."""
    root = base(workshop.folder)
    layer = await written(workshop, root)
    other = await workshop.start(layers=(layer, root))
    assert other.run(_LOOK) == _EXPECTED
    assert other.run("open('/made', 'a').write('x'); result = open('/made').read()") == "madex"
    assert (layer / "made").read_text() == "made"


async def test_files_on_disk_have_the_ids_of_the_inside(workshop: Workshop) -> None:
    """No file on disk belongs to the ids that a sandbox's processes have on this machine."""
    layer = await written(workshop, base(workshop.folder))
    taken = range(first_id(0), 1 << 31)
    found = {path: path.lstat() for path in layer.rglob("*")}
    assert not [path for path, status in found.items() if status.st_uid in taken or status.st_gid in taken]
    assert found[layer / "made"].st_uid == 33
    assert stat.S_ISCHR(found[layer / "gone"].st_mode)
    assert found[layer / "gone"].st_rdev == 0
    assert os.getxattr(layer / "folder", "trusted.overlay.opaque") == b"y"


async def test_a_root_of_as_many_layers_as_there_may_be(workshop: Workshop) -> None:
    """The uppermost one that has a name wins, and all are there."""
    root = base(workshop.folder)
    layers = []
    for number in range(MOST_LAYERS - 1):
        layer = workshop.folder / f"layer-{number}"
        layer.mkdir()
        (layer / "same").write_text(str(number))
        (layer / f"own-{number}").touch()
        layers.insert(0, layer)
    sandbox = await workshop.start(layers=(*layers, root))
    code = "result = [open('/same').read(), sum(name.startswith('own-') for name in os.listdir('/'))]"
    assert sandbox.run(code) == [str(MOST_LAYERS - 2), MOST_LAYERS - 1]


async def test_nothing_inside_can_make_what_hides_files_of_others(workshop: Workshop) -> None:
    """The form in which a layer says that a name is gone: the root inside cannot make one by hand."""
    sandbox = await workshop.start(layers=(base(workshop.folder),), keeps_layer=True)
    code = """
result = []
for act in (lambda: os.mknod("/hides", 0o020000, 0),
            lambda: os.setxattr("/folder", "trusted.overlay.opaque", b"y")):
    try:
        act()
        result.append("done")
    except OSError as error:
        result.append(errno.errorcode[error.errno])
"""
    assert "done" not in sandbox.run(code)
