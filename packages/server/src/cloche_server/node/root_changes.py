"""Changes of a root that need nothing of the image: run inside a sandbox, as its root, by the agent's Python.

    python -c THIS prepare TIMEOUT_S          what every template has: see `_prepare`
    python -c THIS user NAME                  find or make a user; its name is printed
    python -c THIS home NAME                  where a user is at home is printed; nothing where it is not said
    python -c THIS workdir PATH USER          a folder; what of it is new belongs to the user
    python -c THIS gather PATTERN             copy what a pattern names to `GATHERED`, for the next one
    python -c THIS place TARGET OWNER MODE    put what was gathered to its place, as Docker does

An image without a shell, without `useradd`, `cp` or `id` is as good as any. Exit code 1: it cannot be done,
with the reason on standard error.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

GATHERED = "/.cloche-copied"
"""Folder in which files are gathered, and from which they are placed."""
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
    """Do what the arguments say; 0, or 1 where it cannot be done."""
    verb, *words = sys.argv[1:]
    try:
        {
            "prepare": _prepare,
            "user": _user,
            "home": _home,
            "workdir": _workdir,
            "gather": _gather,
            "place": _place,
        }[verb](*words)
    except (OSError, ValueError, LookupError, RecursionError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _prepare(timeout_s: str) -> None:
    """Add the user `user`, its right to become root, folders, and packages as far as they can be had.

    `/usr/local` and `/code` are everybody's to write to; packages are what clients call, where there is a
    package manager and it answers. The last line that is printed says what there is, as JSON.
    """
    is_complete = _add_packages(time.monotonic() + float(timeout_s))
    _add_user(NAME)
    if _has("sudo"):
        rule = Path("/etc/sudoers.d/90-user")
        rule.parent.mkdir(mode=0o755, exist_ok=True)
        rule.write_text(f"{NAME} ALL=(ALL:ALL) NOPASSWD: ALL\n")
        rule.chmod(0o440)
    _open_folders()
    sys.stdout.write(json.dumps({"shell": _shell(), "is_complete": is_complete}) + "\n")


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


def _user(name: str) -> None:
    users = _table("/etc/passwd")
    by_number = [fields[0] for fields in users if name.isdecimal() and fields[2:3] == [name]]
    if by_number and not any(fields[0] == name for fields in users):
        name = by_number[0]
    elif name.isdecimal():
        raise ValueError(f"no user of that number: {name}")
    else:
        _add_user(name)
    sys.stdout.write(f"{name}\n")


def _home(name: str) -> None:
    found = (fields[5] for fields in _table("/etc/passwd") if fields[0] == name and len(fields) > 5)
    sys.stdout.write(f"{next(found, '')}\n")


def _add_user(name: str) -> None:
    """Add a user by hand, unless it is there: the programs that do it differ, and many images have none."""
    users, groups = _table("/etc/passwd"), _table("/etc/group")
    known = next((fields for fields in users if fields[0] == name and len(fields) >= 7), None)
    if known is None:
        taken = {fields[2] for fields in (*users, *groups) if len(fields) > 2}
        number = next(str(one) for one in range(FIRST_ID, LAST_ID) if str(one) not in taken)
        group = next((fields[2] for fields in groups if fields[0] == name and len(fields) > 2), "")
        if not group:
            group = number
            _append("/etc/group", f"{name}:x:{group}:")
        known = [name, "x", number, group, "", f"/home/{name}", _shell() or "/bin/sh"]
        _append("/etc/passwd", ":".join(known))
        if Path("/etc/shadow").exists():
            _append("/etc/shadow", f"{name}:*:19000:0:99999:7:::")
    elif name != NAME:
        return
    home = Path(known[5])
    if not home.exists():
        home.mkdir(mode=0o755, parents=True)
        for path in Path("/etc/skel").glob(".*"):
            if path.is_file() and not path.is_symlink():
                shutil.copyfile(path, home / path.name)
        for path in (home, *home.iterdir()):
            os.chown(path, int(known[2]), int(known[3]), follow_symlinks=False)


def _ids(owner: str) -> tuple[int, int]:
    """Numbers of `user:group`; without a group that of the user."""
    user, colon, group = owner.partition(":")
    users = _table("/etc/passwd")
    known = next((fields for fields in users if fields[0] == user and len(fields) > 3), None)
    if known is None and not user.isdecimal():
        raise LookupError(f"no such user: {user}")
    uid = int(known[2]) if known else int(user)
    if not colon or not group:
        return uid, int(known[3]) if known else uid
    found = (fields[2] for fields in _table("/etc/group") if fields[0] == group and len(fields) > 2)
    number = group if group.isdecimal() else next(found, "")
    if not number.isdecimal():
        raise LookupError(f"no such group: {group}")
    return uid, int(number)


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


def _workdir(path: str, user: str) -> None:
    folder = Path(path)
    missing = [above for above in (folder, *folder.parents) if not above.is_dir()]
    if not missing:
        return
    owner = _ids(user)
    folder.mkdir(parents=True)
    for new in missing:
        os.chown(new, *owner)


# --- files ---------------------------------------------------------------------------------------------


def _gather(pattern: str) -> None:
    """Files of a folder come without the folder's own name."""
    files = Path(GATHERED, "files")
    files.mkdir(parents=True)
    found = sorted(glob.glob(pattern if pattern.startswith("/") else f"/{pattern}"))  # noqa: PTH207 - keeps dots
    if not found:
        raise ValueError(f"no such file or folder: {pattern}")
    links: dict[tuple[int, int], str] = {}
    for one in map(Path, found):
        if one.is_dir() and not one.is_symlink():
            Path(GATHERED, "is-folder").touch()
            for entry in sorted(one.iterdir()):
                _copy(entry, files / entry.name, None, links)
        else:
            _copy(one, files / one.name, None, links)


def _place(target: str, owner: str, mode: str) -> None:
    """One file takes the target's name, unless that is a folder; folders are merged into what is there."""
    files, place = Path(GATHERED, "files"), Path(target)
    look = _Look(*_ids(owner or "0:0"), int(mode, 8) if mode else None)
    entries = sorted(files.iterdir())
    into = Path(GATHERED, "is-folder").exists() or len(entries) > 1 or target.endswith("/") or place.is_dir()
    (place if into else place.parent).mkdir(parents=True, exist_ok=True)
    links: dict[tuple[int, int], str] = {}
    for entry in entries:
        _copy(entry, place / entry.name if into else place, look, links)
    shutil.rmtree(GATHERED)


class _Look:
    """Whose files are, and how they may be used, whatever they were."""

    def __init__(self, uid: int, gid: int, mode: int | None) -> None:
        self.uid, self.gid, self.mode = uid, gid, mode


def _copy(source: Path, target: Path, look: _Look | None, links: dict[tuple[int, int], str]) -> None:
    """Copy with all that a file has; folders that are there keep what they are, and get what is new."""
    status = source.lstat()
    if not stat.S_ISDIR(status.st_mode):
        _copy_file(source, status, target, look, links)
        return
    is_new = not target.is_dir()
    if is_new:
        if os.path.lexists(target):
            raise ValueError(f"a file stands where a folder is to be: {target}")
        target.mkdir()
    for entry in sorted(source.iterdir()):
        _copy(entry, target / entry.name, look, links)
    if is_new:
        _look_as(source, status, target, look)


def _copy_file(
    source: Path, status: os.stat_result, target: Path, look: _Look | None, links: dict[tuple[int, int], str]
) -> None:
    if target.is_dir() and not target.is_symlink():
        raise ValueError(f"a folder stands where a file is to be: {target}")
    target.unlink(missing_ok=True)
    identity = (status.st_dev, status.st_ino)
    if status.st_nlink > 1 and identity in links:
        os.link(links[identity], target, follow_symlinks=False)
        return
    links[identity] = str(target)
    if stat.S_ISLNK(status.st_mode):
        target.symlink_to(source.readlink())
    elif stat.S_ISREG(status.st_mode):
        shutil.copyfile(source, target)
    elif stat.S_ISFIFO(status.st_mode):
        os.mkfifo(target)
    else:
        raise ValueError(f"what is no file, folder or link cannot be copied: {source}")
    _look_as(source, status, target, look)


def _look_as(source: Path, status: os.stat_result, target: Path, look: _Look | None) -> None:
    uid, gid = (status.st_uid, status.st_gid) if look is None else (look.uid, look.gid)
    os.chown(target, uid, gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)
    if look is not None and look.mode is not None and not stat.S_ISLNK(status.st_mode):
        target.chmod(look.mode)


if __name__ == "__main__":
    sys.exit(main())
