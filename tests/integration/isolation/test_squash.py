"""Layers made one show what they showed before, over the same template, by the kernel that reads them."""

import random
from pathlib import Path

import pytest
from tests.integration.isolation.conftest import NEEDS_CONTAINERS, Workshop, plain_rootfs

from cloche_server.isolation.overlay import UPPER
from cloche_server.node import squash, trees

pytestmark = [pytest.mark.anyio, NEEDS_CONTAINERS]

_LOOK = """
result = {}
for folder, folders, files in os.walk("/work"):
    for name in folders + files:
        path = os.path.join(folder, name)
        status = os.lstat(path)
        about = [status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns]
        if os.path.islink(path):
            about.append(os.readlink(path))
        elif os.path.isfile(path):
            about.append(open(path).read())
        result[path] = about
"""
"""All that can be seen; what is listed and cannot be looked at fails."""

_ACT = """
import random, shutil
chance = random.Random({seed})
depths = [chance.choice((1, 2, 2, 3, 3, 3, 4)) for _ in range(80)]
names = ["/work/" + "/".join(chance.choice("abcd") for _ in range(depth)) for depth in depths]

def clear(path):
    if os.path.islink(path) or os.path.isfile(path):
        os.remove(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)

def act(path):
    kind = chance.randrange(7)
    if path.count("/") < 4 and chance.random() < 0.9:
        kind = 3  # else little would be left in the end
    if kind == 0:
        clear(path)
    elif kind == 2:
        clear(path)
        os.makedirs(path)
    elif kind in (1, 3):
        if not os.path.isdir(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "a").write(str(chance.random()))
    elif kind == 4:
        clear(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink("to", path)
    elif kind == 5 and os.path.lexists(path) and not os.path.islink(path):
        os.chmod(path, chance.choice((0o700, 0o751, 0o4755)))
        os.chown(path, chance.randrange(100), 7)
    elif kind == 6 and os.path.lexists(path):
        other = chance.choice(names)
        is_free = not os.path.lexists(other) and not other.startswith(path)
        if is_free and os.path.isdir(os.path.dirname(other)):
            shutil.move(path, other)

for path in names:
    try:
        act(path)
    except (NotADirectoryError, FileExistsError, FileNotFoundError):
        pass  # a file is in the way
"""


def base(folder: Path) -> Path:
    root = plain_rootfs(folder / "base")
    for first in "abc":
        for second in "abc":
            below = root / "work" / first / second
            below.mkdir(parents=True)
            for third in "ab":
                (below / third).write_text("below")
    return root


async def _written(workshop: Workshop, layers: tuple[Path, ...], code: str) -> Path:
    sandbox = await workshop.start(layers=layers)
    sandbox.run(code)
    await workshop.driver.destroy(sandbox.spec.sandbox_id, sandbox.spec.folder, sandbox.init)
    return sandbox.spec.folder / UPPER


async def _shown(workshop: Workshop, layers: tuple[Path, ...]) -> dict[str, object]:
    return (await workshop.start(layers=layers)).run(_LOOK)


@pytest.mark.parametrize("seed", range(4))
async def test_layers_of_random_work_show_the_same_when_they_are_one(container: Workshop, seed: int) -> None:
    root = base(container.folder)
    layers: tuple[Path, ...] = ()
    for number in range(5):
        code = _ACT.format(seed=100 * seed + number)
        layers = (await _written(container, (*layers, root), code), *layers)
    before = [trees.sum_of(layer) for layer in layers]
    wanted = await _shown(container, (*layers, root))
    assert len(wanted) > 20
    for count in (1, 3, 5):
        one = container.folder / f"one-{count}"
        squash.squash(layers[:count], (*layers[count:], root), one)
        assert await _shown(container, (one, *layers[count:], root)) == wanted
    assert [trees.sum_of(layer) for layer in layers] == before


async def test_what_a_layer_hides_of_another_is_not_listed_when_they_are_one(container: Workshop) -> None:
    """A whiteout that lies over nothing would be: the folder is read as it is then."""
    root = base(container.folder)
    lower = await _written(container, (root,), "os.makedirs('/new/in'); open('/new/file', 'w').close()")
    upper = await _written(container, (lower, root), "os.remove('/new/file'); os.rmdir('/new/in')")
    one = container.folder / "one"
    squash.squash((upper, lower), (root,), one)
    assert [path.name for path in (one / "new").iterdir()] == []
    sandbox = await container.start(layers=(one, root))
    assert sandbox.run("result = os.listdir('/new')") == []


async def test_copy_of_what_a_sandbox_has_written_shows_the_same(container: Workshop) -> None:
    root = base(container.folder)
    written = await _written(container, (root,), _ACT.format(seed=random.randrange(1 << 30)))
    wanted = await _shown(container, (written, root))
    for by_link in (False, True):
        target = container.folder / f"copy-{by_link}"
        trees.copy(written, target, by_link=by_link)
        assert await _shown(container, (target, root)) == wanted
