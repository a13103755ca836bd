"""What the default template is made of, as data, and the hash that says whether it has to be made again."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import NamedTuple

TEMPLATE_ID = "codeinterpreterv1000"
"""Fixed, so that clients may keep it across machines and rebuilds."""
NAME = "code-interpreter-v1"
ALIASES = ("base",)
CPU_COUNT = 2
MEMORY_MIB = 2048

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

NPM_VERSION = "10.9.4"
"""The newest line that runs on Node.js 20."""
NPM_SHA512 = "OnUG836FwboQIbqtefDNlyR0gTHzIfwRfE3DuiNewBvnMnWEpB0VEXwBlFVgqpNzIgYo/MHh3d2Hel/pszapAA=="

_FILES = Path(__file__).parent / "code_interpreter"
REQUIREMENTS = _FILES / "requirements.txt"
"""Python packages with hashes; written by `tools/lock-template-packages`."""
CUSTOMIZE = _FILES / "customize.sh"

SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class Recipe(NamedTuple):
    """Everything a build depends on."""

    certificates: tuple[bytes, ...] = ()
    """Authorities of the machine it is made on, one PEM block each."""
    machine: str = platform.machine()

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
        fixed = (FORMAT, SUITE, PACKAGES, NPM_VERSION, NPM_SHA512, self.machine)
        digest = hashlib.sha256(repr((fixed, sorted(self.environment.items()))).encode())
        for content in (REQUIREMENTS.read_bytes(), CUSTOMIZE.read_bytes(), *self.certificates):
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()
