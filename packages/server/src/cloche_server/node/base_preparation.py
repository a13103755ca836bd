"""Give an image what every template has: run inside a sandbox over its layers, as its root.

    python -c THIS TIMEOUT_S

A user `user` with a home, the right to become root where there is a `sudo`, folders that it may write to
(`/usr/local`, `/code`), and, where a package manager is there and answers, what clients call. An image
without a shell or without packages is as good: the last line that is printed says what there is, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

NAME, FIRST_ID, LAST_ID = "user", 1000, 60_000
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WANTED = {"bash": "bash", "sudo": "sudo", "curl": "curl", "ss": "iproute2"}
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"
_INSTALLERS = {
    "apt-get": (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends"]),
    "apk": (None, ["apk", "add", "--no-cache"]),
    "dnf": (None, ["dnf", "install", "-y"]),
    "microdnf": (None, ["microdnf", "install", "-y"]),
    "yum": (None, ["yum", "install", "-y"]),
    "zypper": (None, ["zypper", "--non-interactive", "install"]),
    "pacman": (None, ["pacman", "-Sy", "--noconfirm"]),
}
_OTHER_NAMES = {
    ("dnf", "iproute2"): "iproute",
    ("microdnf", "iproute2"): "iproute",
    ("yum", "iproute2"): "iproute",
}


def main() -> int:
    """Prepare the root; 0 unless it cannot be one's base at all."""
    deadline_s = time.monotonic() + float(sys.argv[1])
    try:
        is_complete = _add_packages(deadline_s)
        shell = _shell()
        _add_user(shell or "/bin/sh")
        _open_folders()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps({"shell": shell, "is_complete": is_complete}) + "\n")
    return 0


def _shell() -> str:
    return next((path for path in ("/bin/bash", "/bin/sh") if os.access(path, os.X_OK)), "")


# --- packages ------------------------------------------------------------------------------------------


def _add_packages(deadline_s: float) -> bool:
    """Add what is missing, as far as it can be had; False where it could not be had now."""
    missing = [package for program, package in _WANTED.items() if not _has(program)]
    if not any(Path(path).exists() for path in _AUTHORITIES):
        missing.append("ca-certificates")
    installer = next((name for name in _INSTALLERS if _has(name)), "")
    if not missing or not installer:
        return True
    refresh, install = _INSTALLERS[installer]
    packages = [_OTHER_NAMES.get((installer, package), package) for package in missing]
    sys.stdout.write(f"adding {' '.join(packages)} by {installer}\n")
    done = refresh is None or _run(refresh, deadline_s)
    done = done and _run([*install, *packages], deadline_s)
    if not done:
        sys.stdout.write(
            f"without {' '.join(packages)}: {installer} has failed, which is no failure of the build\n"
        )
    return done


def _has(program: str) -> bool:
    return shutil.which(program, path=_PATH) is not None


def _run(argv: list[str], deadline_s: float) -> bool:
    env = {"PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive", "HOME": "/root", "LANG": "C"}
    sys.stdout.flush()
    try:
        left_s = max(1.0, deadline_s - time.monotonic())
        return (
            subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, timeout=left_s, check=False).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stdout.write(f"{argv[0]}: {error}\n")
        return False


# --- the user ------------------------------------------------------------------------------------------


def _add_user(shell: str) -> None:
    """Add it by hand: the programs that do it differ, and many images have none."""
    users, groups = _table("/etc/passwd"), _table("/etc/group")
    known = next((fields for fields in users if fields[0] == NAME and len(fields) >= 7), None)
    if known is None:
        taken = {fields[2] for fields in (*users, *groups) if len(fields) > 2}
        number = next(str(one) for one in range(FIRST_ID, LAST_ID) if str(one) not in taken)
        group = next((fields[2] for fields in groups if fields[0] == NAME and len(fields) > 2), "")
        if not group:
            group = number
            _append("/etc/group", f"{NAME}:x:{group}:")
        known = [NAME, "x", number, group, "", f"/home/{NAME}", shell]
        _append("/etc/passwd", ":".join(known))
        if Path("/etc/shadow").exists():
            _append("/etc/shadow", f"{NAME}:*:19000:0:99999:7:::")
    home = Path(known[5])
    if not home.exists():
        home.mkdir(mode=0o755, parents=True)
        for path in Path("/etc/skel").glob(".*"):
            if path.is_file() and not path.is_symlink():
                shutil.copyfile(path, home / path.name)
        for path in (home, *home.iterdir()):
            os.chown(path, int(known[2]), int(known[3]), follow_symlinks=False)
    if _has("sudo"):
        rule = Path("/etc/sudoers.d/90-user")
        rule.parent.mkdir(mode=0o755, exist_ok=True)
        rule.write_text(f"{NAME} ALL=(ALL:ALL) NOPASSWD: ALL\n")
        rule.chmod(0o440)


def _table(path: str) -> list[list[str]]:
    try:
        return [line.split(":") for line in Path(path).read_text(errors="surrogateescape").splitlines()]
    except FileNotFoundError:
        return []


def _append(path: str, line: str) -> None:
    with open(path, "a+", errors="surrogateescape") as file:  # noqa: PTH123 - nothing to join
        file.seek(0)
        text = file.read()
        file.write(f"{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n")


# --- folders -------------------------------------------------------------------------------------------


def _open_folders() -> None:
    """Let everybody write below /usr/local: folders only, a file that changes its mode is a copy more."""
    for path in ("/usr/local", "/code"):
        Path(path).mkdir(parents=True, exist_ok=True)
    Path("/code").chmod(0o777)
    for folder, _, _ in os.walk("/usr/local"):
        with suppress(OSError):
            if stat.S_IMODE(os.lstat(folder).st_mode) & 0o777 != 0o777:
                Path(folder).chmod(0o777)
    for path, mode in (("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/root", 0o700)):  # noqa: S108 - in a new root
        if not os.path.lexists(path):
            Path(path).mkdir(parents=True)
            Path(path).chmod(mode)


if __name__ == "__main__":
    sys.exit(main())
