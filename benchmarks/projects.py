"""The project whose Dockerfile `cloche bench` builds: with `cloche template build`, and with `buildah bud`.

Both build the same folder from the same root. Nothing is fetched, so that the network has no part in it.
"""

import subprocess
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from secrets import token_hex

from costs import Costs, ms_of

BASE = "docker.io/e2bdev/base"
"""Our default template goes by this name; for buildah the same root is made an image of that name."""
MODULES = 200
_DOCKERFILE = """\
FROM {base}
ENV PROJECT={project} PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
WORKDIR /srv/app
COPY requirements.txt ./
RUN python3 -m venv --without-pip --system-site-packages /opt/venv
COPY . .
RUN python -m compileall -q .
RUN git init -q . && git add -A && git -c user.name=bench -c user.email=bench@localhost commit -qm first
RUN useradd --create-home worker && chown -R worker /srv/app
RUN tar -czf /srv/app.tar.gz .
RUN echo {version} > /srv/version
"""
_MODULE = '''"""Part {number} of the project."""

import json

VALUES = {{name: name * {number} for name in range(50)}}


def answer(question: str) -> str:
    """Say what is known of it."""
    return json.dumps({{"question": question, "value": VALUES[{number} % 50]}})
'''


class Project:
    """A folder with a Dockerfile of eight steps that change files; no build before it has had its content."""

    def __init__(self, folder: Path) -> None:
        """Write it."""
        self.folder = folder
        self._name = token_hex(8)
        self._versions = count(1)
        (folder / "package").mkdir(parents=True)
        (folder / ".dockerignore").write_text("Dockerfile\n.dockerignore\n")
        (folder / "requirements.txt").write_text("numpy\npandas\n")
        for number in range(MODULES):
            (folder / "package" / f"part_{number}.py").write_text(_MODULE.format(number=number))
        self.change_last_step()

    def change_last_step(self) -> None:
        """Have the last step be one that has never run."""
        text = _DOCKERFILE.format(base=BASE, project=self._name, version=next(self._versions))
        (self.folder / "Dockerfile").write_text(text)


def builds(
    build: Callable[[Path], object], clean_up: Callable[[], object], *, has_cache: bool = True
) -> Costs:
    """Build a new project, then again as it is, then with another last step; each in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="cloche-bench-project-") as name:
        project = Project(Path(name) / "project")
        try:
            costs = {"ms": [ms_of(lambda: build(project.folder))]}
            if has_cache:
                costs["cached"] = [ms_of(lambda: build(project.folder))]
                project.change_last_step()
                costs["rebuild"] = [ms_of(lambda: build(project.folder))]
        finally:
            clean_up()
    return costs


def run(argv: list[str]) -> str:
    """Run a program to its end and return what it says.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-200:] or str(done.returncode))
    return done.stdout
