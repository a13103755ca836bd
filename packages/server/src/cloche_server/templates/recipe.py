"""What the embedded templates are made of, as data, and the hash that says when one has to be made again."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import NamedTuple

TEMPLATE_ID = "codeinterpreterv1000"
"""Of the default template."""
NAME = "code-interpreter-v1"

FORMAT = 1
"""Goes into the hash: raise it when the builder itself does something else with the same recipe."""

SUITE = "trixie"
"""Debian 13: Python 3.13 and Node.js 20."""

PACKAGES = (
    "bash", "bzip2", "ca-certificates", "curl", "file", "git", "iproute2", "iputils-ping", "jq", "less",
    "libgomp1", "libnss-myhostname", "libstdc++6", "lsof", "media-types", "netbase", "nodejs",
    "openssh-client", "procps", "psmisc", "python-is-python3", "python3", "python3-pip", "python3-venv",
    "sudo", "tzdata", "unzip", "vim-tiny", "wget", "xz-utils", "zip",
)  # fmt: skip
"""`libnss-myhostname` lets sudo find the sandbox's own name without a network."""


class NpmPackage(NamedTuple):
    """An archive of the npm registry, without what it depends on."""

    name: str
    version: str
    sha512: str
    """Base64, as the registry has it after `sha512-`."""

    @property
    def path(self) -> str:
        """Where the archive lies, below the registry's address."""
        return f"{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


NPM_PACKAGES = (
    # npm itself: the newest line that runs on Node.js 20.
    NpmPackage(
        "npm",
        "10.9.4",
        "OnUG836FwboQIbqtefDNlyR0gTHzIfwRfE3DuiNewBvnMnWEpB0VEXwBlFVgqpNzIgYo/MHh3d2Hel/pszapAA==",
    ),
    # Takes the types out of TypeScript cells, until Node.js does it itself (22.13). 3.7 MB, no native code.
    NpmPackage(
        "@swc/wasm-typescript",
        "1.16.2",
        "ll8qaJBPyBNYRZ3MyRBB7KwM/BEWsxiNPSeX34wtFvRrWFO8wHgn1xoQbEp6Zoe3Um+rbd6Jtsb8Xhn96hiz2g==",
    ),
)
"""Unpacked into the folder of global packages."""

POLYGLOT_PACKAGES = ("g++", "openjdk-21-jdk-headless", "r-base-core", "r-cran-irkernel", "ruby")
"""`g++` compiles each cell of C++. R's own kernel is packaged; Java's comes from PyPI."""

_FILES = Path(__file__).parent

SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class Recipe(NamedTuple):
    """Everything a build depends on."""

    template_id: str
    """Fixed, so that clients may keep it across machines and rebuilds."""
    name: str
    packages: tuple[str, ...]
    """Of Debian, beyond the essential ones or those of `base`."""
    files: Path
    """Folder of `requirements.txt` and `customize.sh`."""
    needed_bytes: int
    """Free space that a build asks for: its root, and its packages for a while."""
    aliases: tuple[str, ...] = ()
    base: Recipe | None = None
    """The template whose root this one starts from."""
    certificates: tuple[bytes, ...] = ()
    """Authorities of the machine it is made on, one PEM block each."""
    machine: str = platform.machine()
    cpu_count: int = 2
    memory_mib: int = 2048

    @property
    def requirements(self) -> Path:
        """Python packages with hashes; written by `tools/lock-template-packages`."""
        return self.files / "requirements.txt"

    @property
    def customize(self) -> Path:
        """The script of the last stage."""
        return self.files / "customize.sh"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every process in the template's sandboxes."""
        variables = {"LANG": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        variables["PIP_ROOT_USER_ACTION"] = "ignore"
        if self.certificates:
            # Programs that bring their own list of authorities; curl, git and apt use the system's anyway.
            names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_CERT")
            variables |= dict.fromkeys(names, SYSTEM_BUNDLE)
        return variables

    @property
    def hash(self) -> str:
        """The same for the same result; proxies and mirrors leave no trace in a template."""
        fixed = (FORMAT, SUITE, self.packages, NPM_PACKAGES, self.machine)
        digest = hashlib.sha256(repr((fixed, sorted(self.environment.items()))).encode())
        contents = [self.requirements.read_bytes(), self.customize.read_bytes(), *self.certificates]
        if self.base:
            contents.append(self.base.hash.encode())
        for content in contents:
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


def code_interpreter(certificates: tuple[bytes, ...] = ()) -> Recipe:
    """The default template: made at the first start, so as small as what everybody needs."""
    return Recipe(
        TEMPLATE_ID, NAME, PACKAGES, _FILES / "code_interpreter", needed_bytes=2 * 1024**3,
        aliases=("base",), certificates=certificates,
    )  # fmt: skip


def polyglot(certificates: tuple[bytes, ...] = ()) -> Recipe:
    """The default template and the languages that are too large for it; made when it is asked for."""
    return Recipe(
        "polyglot000000000000", "polyglot", POLYGLOT_PACKAGES, _FILES / "polyglot",
        needed_bytes=3 * 1024**3, base=code_interpreter(certificates), certificates=certificates,
    )  # fmt: skip


def embedded(certificates: tuple[bytes, ...] = ()) -> tuple[Recipe, ...]:
    """Every template that Cloche can make by itself, the default one first."""
    return (code_interpreter(certificates), polyglot(certificates))
