"""Layers as overlayfs makes and shows them: what programs do at random in one, and what is seen of several.

    python -m tests.support.overlays SEED FOLDER

makes layers, merges some, and prints what is seen before and after. In a mount namespace of its own.
"""

import hashlib
import json
import os
import random
import stat
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from cloche_server.node.squash import squash

OPTIONS = "redirect_dir=nofollow,index=off,metacopy=off"
NAMES = ("a", "b", "c", "long name", "ä")
OF_BASE = NAMES[:2]
"""Others come later: what is removed of them hides nothing below."""
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
LAYERS, ACTS = 6, 40
Seen = dict[str, list[object]]


def mount(layers: list[Path], target: Path, *more: str) -> None:
    """Show layers, uppermost first."""
    options = ",".join([f"lowerdir={':'.join(map(str, layers))}", *more, OPTIONS])
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(target)], check=True)


def unmount(target: Path) -> None:
    subprocess.run(["umount", str(target)], check=True)


def seen(root: Path) -> Seen:
    """All that a program can see of a tree, but for times of reading and numbers of files."""
    found: Seen = {}
    same: dict[int, list[str]] = defaultdict(list)
    for folder, folders, files in os.walk(root, followlinks=False):
        for name in [*folders, *files, "."]:
            path = Path(folder, name)
            status = path.lstat()
            key = str(path.relative_to(root))
            content = b""
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
                same[status.st_ino].append(key)
            elif stat.S_ISLNK(status.st_mode):
                content = str(path.readlink()).encode()
            attributes = {
                attribute: os.getxattr(path, attribute, follow_symlinks=False).hex()
                for attribute in sorted(os.listxattr(path, follow_symlinks=False))
            }
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            owner = [status.st_mode, status.st_uid, status.st_gid, status.st_rdev]
            digest = hashlib.sha256(content).hexdigest()
            found[key] = [*owner, size, status.st_mtime_ns, digest, attributes]
    for paths in same.values():
        for path in paths:
            found[path].append(sorted(paths))
    return found


class Program:
    """Does at random what programs do to files."""

    def __init__(self, root: Path, chance: random.Random, names: tuple[str, ...]) -> None:
        self.root = root
        self.names = names
        self.chance = chance

    def act(self) -> None:
        acts = [self.write, self.make] * 4 + [self.change, self.same, self.remove] * 2
        acts += [self.append, self.remove, self.link, self.rename, self.again, self.pipe]
        with suppress(OSError, subprocess.CalledProcessError):  # what cannot be done is no act
            self.chance.choice(acts)(self.path(), self.path())

    def path(self) -> Path:
        """Any, or one that is there: else hardly anything would ever be changed or removed."""
        there = sorted(path for path in self.root.rglob("*") if path.parent != self.root)
        if there and self.chance.random() < 0.5:
            return self.chance.choice(there)
        path = self.root
        for _ in range(self.chance.randint(1, 3)):
            path /= self.chance.choice(self.names)
        return path

    def write(self, path: Path, _: Path) -> None:
        if path.is_fifo():  # nobody reads
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.seek(self.chance.choice([0, 0, 1 << 20]))
            file.write(self.chance.randbytes(self.chance.randint(0, 9000)))

    def append(self, path: Path, _: Path) -> None:
        if path.is_fifo():
            return
        with path.open("ab") as file:
            file.write(b"more")

    def remove(self, path: Path, _: Path) -> None:
        if path.parent != self.root:  # else little would be left in the end
            subprocess.run(["rm", "-rf", str(path)], check=True)

    def make(self, path: Path, _: Path) -> None:
        path.mkdir(parents=True)

    def again(self, path: Path, _: Path) -> None:
        """A folder where something else was, or another one."""
        self.remove(path, path)
        path.mkdir(parents=True)
        (path / self.chance.choice(self.names)).write_text("new")

    def link(self, path: Path, other: Path) -> None:
        path.symlink_to(other.name)

    def same(self, path: Path, other: Path) -> None:
        path.hardlink_to(other)

    def rename(self, path: Path, other: Path) -> None:
        path.rename(other)

    def pipe(self, path: Path, _: Path) -> None:
        os.mkfifo(path)

    def change(self, path: Path, _: Path) -> None:
        os.chown(path, self.chance.randint(0, 65535), self.chance.randint(0, 65535), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(self.chance.choice([0o755, 0o4711, 0o2770, 0o1777, 0o600]))
            os.setxattr(path, "trusted.some", self.chance.randbytes(5))
            os.setxattr(path, "security.capability", CAPABILITY)


def written(folder: Path, chance: random.Random) -> list[Path]:
    """Layers that programs have written one over the other, uppermost first."""
    layers = [folder / "base"]
    layers[0].mkdir()
    for number in range(LAYERS):
        upper, work, root = (folder / f"{name}{number}" for name in ("upper", "work", "root"))
        for made in (upper, work, root):
            made.mkdir()
        if number == 0:
            program = Program(layers[0], chance, OF_BASE)
        else:
            mount(layers, root, f"upperdir={upper}", f"workdir={work}")
            program = Program(root, chance, NAMES)
        for _ in range(ACTS if number else 3 * ACTS):
            program.act()
        if number:
            unmount(root)
            layers.insert(0, upper)
    return layers


def main(seed: int, folder: Path) -> None:
    chance = random.Random(seed)
    layers = written(folder, chance)
    first = chance.choice([0, 0, 0, 1, 2])
    last = chance.randint(first + 2, len(layers) - 1)
    merged, root = folder / "merged", folder / "root"
    root.mkdir()
    mount([*layers, folder / "root0"], root)
    before = seen(root)
    unmount(root)
    squash(layers[first:last], [*layers[last:], folder / "root0"], merged)
    mount([*layers[:first], merged, *layers[last:], folder / "root0"], root)
    after = seen(root)
    unmount(root)
    print(json.dumps([len(before), before, after]))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
