"""Roots of images, as tar files: made of the programs of this machine, as small distributions are made."""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

_APPLETS = (
    "sh", "ash", "cat", "ls", "echo", "mkdir", "rm", "id", "env", "touch", "stat", "adduser", "chown",
    "chmod", "dirname", "grep", "pwd", "whoami", "sleep", "test", "true", "false", "uname", "wc", "ln",
    "find", "sort",
)  # fmt: skip
_SOURCE = '#include <stdio.h>\nint main(void) { puts("of musl"); return 0; }\n'


class Tar:
    """A tar file, entry by entry."""

    def __init__(self) -> None:
        self._content = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._content, mode="w")  # noqa: SIM115 - closed by `bytes`

    def add(self, name: str, content: bytes = b"", mode: int = 0o644, **fields: Any) -> "Tar":
        """A file, unless the fields say otherwise."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), mode
        for field, value in fields.items():
            setattr(member, field, value)
        self._tar.addfile(member, io.BytesIO(content))
        return self

    def folder(self, name: str, mode: int = 0o755) -> "Tar":
        """A folder."""
        return self.add(name, mode=mode, type=tarfile.DIRTYPE)

    def link(self, name: str, target: str) -> "Tar":
        """A symbolic link."""
        return self.add(name, mode=0o777, type=tarfile.SYMTYPE, linkname=target)

    def bytes(self) -> bytes:
        """The whole file."""
        self._tar.close()
        return self._content.getvalue()


def alpine_like() -> bytes:
    """Busybox, the C library musl and a program that it loads; no bash, no Python, no package manager."""
    loader = next(Path("/lib").glob("ld-musl-*.so.1"))
    tar = Tar()
    for name in ("bin", "etc", "lib", "root", "tmp", "usr", "usr/bin", "home", "proc", "sys", "dev"):
        tar.folder(name)
    tar.add("bin/busybox", Path(_program("busybox")).read_bytes(), 0o755)
    for name in _APPLETS:
        tar.link(f"bin/{name}", "/bin/busybox")
    tar.add(f"lib/{loader.name}", loader.resolve().read_bytes(), 0o755)
    tar.add("usr/bin/of-musl", _of_musl(), 0o755)
    tar.add("etc/passwd", b"root:x:0:0:root:/root:/bin/ash\nnobody:x:65534:65534::/:/bin/false\n")
    tar.add("etc/group", b"root:x:0:\nnobody:x:65534:\n")
    tar.add("etc/alpine-release", b"3.20.0\n")
    return tar.bytes()


def distroless_like() -> bytes:
    """One static program and accounts: no shell at all."""
    tar = Tar()
    for name in ("app", "etc", "tmp"):
        tar.folder(name)
    tar.add("app/hello", _of_musl("-static"), 0o755)
    tar.add(
        "etc/passwd",
        b"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532::/home/nonroot:/sbin/nologin\n",
    )
    return tar.bytes()


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is missing: tools/setup --for-tests"
    return found


@cache
def _of_musl(*options: str) -> bytes:
    """A program that is linked to musl, not to the C library of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "of.c"), Path(folder, "of")
        source.write_text(_SOURCE)
        argv = [_program("musl-gcc"), *options, "-o", str(made), str(source)]
        subprocess.run(argv, check=True, env=os.environ | {"LC_ALL": "C"})
        return made.read_bytes()
