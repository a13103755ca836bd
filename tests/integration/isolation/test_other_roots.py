"""An image that was saved over a root of mount points alone goes on over roots that have more."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.isolation.conftest import NEEDS_GVISOR, Started, Workshop

from cloche_server.isolation.overlay import UPPER

pytestmark = [pytest.mark.anyio, NEEDS_GVISOR]

_LOOK = """
result = {
    "top": sorted(set(os.listdir("/")) - {"dev", "sys", ".cloche"}),
    "file": open("/usr/lib/file").read(),
    "tmp": [oct(os.stat("/tmp").st_mode), os.listdir("/tmp")],
    "unseen": os.path.exists("/never"),
    "devices": os.path.exists("/dev/null") and os.path.exists("/sys/devices"),
}
"""
_MISS = "result = [os.path.exists(path) for path in ('/usr', '/usr/lib/file', '/odd', '/never')]"


def root(folder: Path, *names: str) -> Path:
    """A root with a /tmp that is not what it usually is, and these folders."""
    for name in ("proc", "tmp", *names):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o750)
    return folder


async def saved(gvisor: Workshop, folder: Path) -> Path:
    """An image over nothing but mount points; names were looked for in it that the other roots have."""
    plain = root(folder / "plain")
    first = await gvisor.start(plain, keeps_layer=True, boot_id=str(uuid4()))
    assert first.run(_MISS) == [False] * 4
    assert first.run("os.rmdir('/tmp/.cloche'); result = os.listdir('/tmp')") == []  # as the agent does it
    image = folder / "image"
    image.mkdir()
    await gvisor.driver.freeze(first.spec.sandbox_id, first.spec.folder)
    await gvisor.driver.save(first.spec.sandbox_id, first.spec.folder, image)
    await gvisor.driver.destroy(first.spec.sandbox_id, first.spec.folder, None)
    return image


async def going_on(gvisor: Workshop, image: Path, layers: Path, **changes: Any) -> Started:
    assert gvisor.driver.goes_on_over((layers,))
    changes["boot_id"] = str(uuid4())
    return await gvisor.start(layers, keeps_layer=True, image=image, **changes)


async def test_it_sees_the_new_root_and_nothing_of_the_old_one(gvisor: Workshop, folder: Path) -> None:
    """Also names that it had looked for in vain, and a folder that it had written to."""
    image = await saved(gvisor, folder)
    other = root(folder / "other", "usr/lib", "odd", "sys", "dev")
    (other / "usr" / "lib" / "file").write_text("hello")
    sandbox = await going_on(gvisor, image, other)
    assert sandbox.run(_LOOK) == {
        "top": ["odd", "proc", "tmp", "usr"],
        "file": "hello",
        "tmp": ["0o40750", []],
        "unseen": False,
        "devices": True,
    }


async def test_what_it_writes_is_a_layer_without_anything_of_ours(gvisor: Workshop, folder: Path) -> None:
    """Two of one image at the same time, each over its own root."""
    image = await saved(gvisor, folder)
    sandboxes = [
        await going_on(gvisor, image, root(folder / name, "etc", "dev", "sys")) for name in ("one", "other")
    ]
    for number, sandbox in enumerate(sandboxes):
        sandbox.run(f"open('/made', 'w').write('{number}'); os.chmod('/etc', 0o700); os.sync()")
    for number, sandbox in enumerate(sandboxes):
        upper = sandbox.spec.folder / UPPER
        assert (upper / "made").read_text() == str(number)
        assert (upper / "etc").stat().st_mode & 0o777 == 0o700
        assert {path.name for path in upper.iterdir()} - {".cloche"} == {"made", "etc"}


async def test_its_boot_and_its_randomness_are_its_own(gvisor: Workshop, folder: Path) -> None:
    image = await saved(gvisor, folder)
    look = "result = [open('/proc/sys/kernel/random/boot_id').read(), os.urandom(16).hex()]"
    seen = [(await going_on(gvisor, image, root(folder / name))).run(look) for name in ("one", "other")]
    assert seen[0][0].strip() == gvisor.made[-2].boot_id
    assert len({text for pair in seen for text in pair}) == 4


async def test_limits_are_those_of_the_one_that_goes_on(gvisor: Workshop, folder: Path) -> None:
    """Not of the one that was saved, which had 256 MiB."""
    image = await saved(gvisor, folder)
    limits = gvisor.spec().limits
    assert limits.memory_mib == 256
    large = type(limits)(cpu_count=1, memory_mib=1024, pids=64)
    sandbox = await going_on(gvisor, image, root(folder / "large"), limits=large)
    sandbox.run("kept = bytearray(os.urandom(1 << 20)) * 800; result = len(kept)")
    assert gvisor.driver.is_alive(sandbox.init)
    assert gvisor.driver.usage(sandbox.spec.sandbox_id).memory_bytes > 700 << 20


async def test_a_root_without_its_mount_points_is_not_taken(gvisor: Workshop, folder: Path) -> None:
    """A restore over it would fail, or follow a link: who asks starts a sandbox instead."""
    strange = root(folder / "strange")
    (strange / "sys").symlink_to("/tmp")
    assert not gvisor.driver.goes_on_over((strange,))
    (strange / "sys").unlink()
    (strange / "proc").rmdir()
    assert not gvisor.driver.goes_on_over((strange,))
