"""What the node has to know of templates: their manifests, of which each is read and checked once."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from cloche_wire.errors import TemplateNotFound

MANIFEST = "manifest.json"
DEFAULT_WARM = ("numpy", "pandas", "matplotlib.pyplot")
_SLEEPS = re.compile(r"\s*sleep\s+[\d.]+[smh]?\s*\Z")


class Template(msgspec.Struct, frozen=True):
    """What the node reads of a template's manifest."""

    rootfs: str
    """Folder of a root of its own, beside the manifest; of no meaning where there are `layers`."""
    layers: tuple[str, ...] = ()
    """Names of what it is made of instead, uppermost first; see `layers`."""
    default_user: str = "user"
    default_workdir: str = "/home/user"
    env: dict[str, str] = {}
    isolation: str = ""
    """The driver that its sandboxes get where their creator asks for none; empty: the server's."""
    start_cmd: str = ""
    """Runs in every sandbox from its beginning."""
    ready_cmd: str = ""
    """Succeeds once that is so far."""
    warm: tuple[str, ...] = DEFAULT_WARM
    """Python modules that sandboxes made ahead have imported; what the template lacks is passed over."""

    @property
    def tells_when_ready(self) -> bool:
        """Whether its ready command looks at anything: one that only sleeps gives the start command time."""
        return bool(self.start_cmd and self.ready_cmd and not _SLEEPS.match(self.ready_cmd))


class Templates:
    """The finished builds of a folder."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; others add and remove builds at any time."""
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, ...], Template]] = {}
        """By build, and what its file was when it was read."""

    def folder(self, build_id: str) -> Path:
        """Where a build lies, or would."""
        return self._folder / build_id

    def finished(self) -> set[str]:
        """The builds that lie here."""
        return {path.parent.name for path in self._folder.glob(f"[!.]*/{MANIFEST}")}

    def read(self, build_id: str) -> Template:
        """What the node has to know of a finished build; read anew where its manifest is another file by now.

        Raises:
            TemplateNotFound: No finished build of that id lies here.
        """
        path = self.folder(build_id) / MANIFEST
        try:
            found = path.stat()
            # Before the content is read: what takes the file's place meanwhile is read the next time.
            file = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            known = self._read.get(build_id)
            if known is None or known[0] != file:
                known = file, msgspec.json.decode(path.read_bytes(), type=Template)
                self._read[build_id] = known
        except (OSError, msgspec.DecodeError) as error:
            self._read.pop(build_id, None)
            raise TemplateNotFound(f"no finished build: {build_id}") from error
        return known[1]
