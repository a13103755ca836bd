"""Unpack an archive and put what it holds to its place: run inside a sandbox, as its root.

    python -c THIS ARCHIVE SOURCE TARGET OWNER MODE MAX_BYTES MAX_ENTRIES

The archive is a stranger's, and the sandbox is the wall. What leaves the folder that it is unpacked into is
refused all the same, so that a template is what its steps say. Exit code 3: too large; 4: not what it should
be, with the reason on standard error.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
import tempfile
from pathlib import Path

TOO_LARGE, UNFIT = 3, 4
_PLAIN_BITS = 0o777


class TooLargeError(Exception):
    """More than a layer may hold."""


class UnfitError(Exception):
    """No archive that can be unpacked, or not what is asked for in it."""


def main() -> int:
    """Do what the arguments say; the exit code."""
    archive, source, target, owner, mode, max_bytes, max_entries = sys.argv[1:]
    folder = Path(tempfile.mkdtemp(prefix=".cloche-put-", dir="/"))
    folder.chmod(0o755)  # what of it goes to a new place takes its mode along
    try:
        _unpack(archive, folder, int(max_bytes), int(max_entries))
        found = _find(folder, source)
        _own(found, *_ids(owner), int(mode, 8) if mode else None)
        _place(found, target)
    except TooLargeError as error:
        return _told(error, TOO_LARGE)
    except (UnfitError, tarfile.TarError, EOFError, ValueError, LookupError, MemoryError, OSError) as error:
        return _told(error, UNFIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        Path(archive).unlink(missing_ok=True)
    return 0


def _told(error: Exception, code: int) -> int:
    sys.stderr.write(f"{str(error)[:1000] or type(error).__name__}\n")
    return code


def _unpack(archive: str, folder: Path, max_bytes: int, max_entries: int) -> None:
    size = entries = 0
    with tarfile.open(archive, "r:*") as tar:
        tar.extraction_filter = _as_it_is  # newer Pythons have ones of their own, older ones do not look
        for member in tar:
            entries += 1
            size += max(member.size, 0)
            if entries > max_entries:
                raise TooLargeError(f"the archive holds more than {max_entries} entries")
            if size > max_bytes:
                raise TooLargeError(f"the archive holds more than {max_bytes} bytes")
            if member.size < 0 or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                raise UnfitError(f"the archive holds what is no file, folder or link: {member.name[:200]}")
            _check_place(member, folder)
            member.mode &= _PLAIN_BITS
            member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
            tar.extract(member, folder)


def _as_it_is(member: tarfile.TarInfo, _path: str) -> tarfile.TarInfo:
    """Every member was checked before."""
    return member


def _check_place(member: tarfile.TarInfo, folder: Path) -> None:
    """Refuse a name that leads out, by itself or through a link that was unpacked before."""
    member.name = member.name.lstrip("/")
    place = folder / member.name
    parent = place.parent if member.name.strip("./") else folder
    _stay(Path(os.path.realpath(parent)), folder, member.name)
    if ".." in Path(member.name).parts:
        raise UnfitError(f"the archive holds a name that leads out: {member.name[:200]}")
    if member.islnk():
        # Links of links are resolved too: what is written to it later must be in the folder.
        member.linkname = member.linkname.lstrip("/")
        _stay(Path(os.path.realpath(folder / member.linkname)), folder, member.linkname)
    if not member.issym() and place.is_symlink():
        place.unlink()  # replaced, never written through


def _stay(path: Path, folder: Path, name: str) -> None:
    if not path.is_relative_to(folder):
        raise UnfitError(f"the archive holds a name that leads out: {name[:200]}")


def _find(folder: Path, source: str) -> Path:
    relative = os.path.normpath(source.lstrip("/") or ".")
    found = folder / relative
    _stay(Path(os.path.realpath(found.parent if relative != "." else folder)), folder, source)
    if not os.path.lexists(found):
        raise UnfitError(f"not in the archive: {source[:200]}")
    return found


def _ids(owner: str) -> tuple[int, int]:
    user, _, group = owner.partition(":")
    uid = _number(user, "/etc/passwd")
    return uid, _number(group, "/etc/group") if group else uid


def _number(name: str, table: str) -> int:
    """By hand: the C library would load what the template has chosen."""
    if name.isdecimal():
        return int(name)
    lines = Path(table).read_text(errors="replace").splitlines() if Path(table).exists() else []
    for fields in (line.split(":") for line in lines):
        if fields[0] == name and len(fields) > 2 and fields[2].isdecimal():
            return int(fields[2])
    if name == "root":
        return 0
    raise UnfitError(f"no such user or group: {name[:100]}")


def _own(found: Path, uid: int, gid: int, mode: int | None) -> None:
    paths = [found]
    for path in paths:
        status = path.lstat()
        os.chown(path, uid, gid, follow_symlinks=False)
        if mode is not None and not stat.S_ISLNK(status.st_mode):
            path.chmod(mode)
        if stat.S_ISDIR(status.st_mode):
            paths.extend(path.iterdir())


def _place(found: Path, target: str) -> None:
    is_folder = found.is_dir() and not found.is_symlink()
    place = Path(target)
    if not is_folder and (target.endswith("/") or place.is_dir()):
        place /= found.name
    place.parent.mkdir(parents=True, exist_ok=True)
    _merge(found, place)


def _merge(found: Path, place: Path) -> None:
    """Move to its place; folders that are there keep their owner and mode, and get what is new."""
    if not (found.is_dir() and not found.is_symlink()):
        if place.is_dir() and not place.is_symlink():
            raise UnfitError(f"a folder stands where a file is to be: {place}")
        place.unlink(missing_ok=True)
        shutil.move(found, place)
    elif place.is_dir():
        for entry in found.iterdir():
            _merge(entry, place / entry.name)
    elif os.path.lexists(place):
        raise UnfitError(f"a file stands where a folder is to be: {place}")
    else:
        shutil.move(found, place)


if __name__ == "__main__":
    sys.exit(main())
