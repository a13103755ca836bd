"""What a template is made of, as a chain of verbs: base, steps, start command. Nothing is read or sent."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Final, Literal, Self, TypedDict

from cloche.errors import InvalidArgument

DEFAULT_IMAGE: Final = "e2bdev/base"
"""Stands for the server's own default template."""
AnyPath = str | PurePath
_SDK = Path(__file__).parent


class _CopyItem(TypedDict):
    src: AnyPath | Sequence[AnyPath]
    dest: AnyPath


class CopyItem(_CopyItem, total=False):
    """One entry of `copy_items`."""

    user: str | None
    mode: int | None


class TemplateSteps:
    """The verbs of a template, named as those of E2B's builder; each changes the template and returns it."""

    def __init__(
        self,
        file_context_path: AnyPath | None = None,
        file_ignore_patterns: Iterable[str] = (),
        *,
        name: str = "",
        cpu_count: int | None = None,
        memory_mb: int | None = None,
    ) -> None:
        """Begin with the server's default template.

        Args:
            file_context_path: Folder that `copy` takes files from; else that of the calling file.
            file_ignore_patterns: Lines that are added to the folder's `.dockerignore`.
            name: What `cloche template build FILE` calls it, where nothing else is said.
            cpu_count: CPUs of its sandboxes there.
            memory_mb: Their memory in MiB there.
        """
        self._context = str(_callers_folder() if file_context_path is None else file_context_path)
        self._ignored = list(file_ignore_patterns)
        self._said = {"name": name, "cpu_count": cpu_count, "memory_mib": memory_mb}
        self._base: dict[str, Any] = {"fromImage": DEFAULT_IMAGE}
        self._steps: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}
        self._is_forced = self._forces_steps = False

    def describe(self) -> dict[str, Any]:
        """All of it as JSON has it; `COPY` names files of the folder `context`, which are not packed yet."""
        description = {**self._base, "steps": self._steps, "force": self._is_forced, **self._last}
        about = {"description": description, "context": self._context, "ignored": self._ignored}
        return about | {name: value for name, value in self._said.items() if value}

    # --- bases --------------------

    def from_image(self, image: str, username: str | None = None, password: str | None = None) -> Self:
        """Begin with an image; name and password are those of its registry.

        Raises:
            InvalidArgument: One of the two without the other.
        """
        if (username is None) != (password is None):
            raise InvalidArgument("a registry takes a name and a password")
        self._base = {"fromImage": image}
        if username is not None:
            opens = {"type": "registry", "username": username, "password": password}
            self._base["fromImageRegistry"] = opens
        self._is_forced = self._forces_steps
        return self

    def from_template(self, template: str) -> Self:
        """Begin with another template, maybe with a tag."""
        self._base = {"fromTemplate": template}
        self._is_forced = self._forces_steps
        return self

    def from_base_image(self) -> Self:
        """Begin with the server's default template."""
        return self.from_image(DEFAULT_IMAGE)

    def from_debian_image(self, variant: str = "stable") -> Self:
        """Begin with `debian`."""
        return self.from_image(f"debian:{variant}")

    def from_ubuntu_image(self, variant: str = "latest") -> Self:
        """Begin with `ubuntu`."""
        return self.from_image(f"ubuntu:{variant}")

    def from_alpine_image(self, variant: str = "latest") -> Self:
        """Begin with `alpine`."""
        return self.from_image(f"alpine:{variant}")

    def from_python_image(self, version: str = "3") -> Self:
        """Begin with `python`."""
        return self.from_image(f"python:{version}")

    def from_node_image(self, variant: str = "lts") -> Self:
        """Begin with `node`."""
        return self.from_image(f"node:{variant}")

    # --- steps --------------------

    def copy(
        self,
        src: AnyPath | Sequence[AnyPath],
        dest: AnyPath,
        *,
        user: str | None = None,
        mode: int | None = None,
    ) -> Self:
        """Copy files and folders of the context; a folder's content goes to `dest`.

        Raises:
            InvalidArgument: A source is absolute, or leads out of the context.
        """
        for one in [src] if isinstance(src, str | PurePath) else src:
            parts = PurePosixPath(one).parts
            if PurePosixPath(one).is_absolute() or _leads_out(parts):
                raise InvalidArgument(f"not a path within the folder of the template: {one}")
            self._step("COPY", str(one), str(dest), user or "", _octal(mode))
        return self

    def copy_items(self, items: Iterable[CopyItem]) -> Self:
        """Copy each of these, as `copy` does."""
        for item in items:
            self.copy(item["src"], item["dest"], user=item.get("user"), mode=item.get("mode"))
        return self

    def run_cmd(self, command: str | Sequence[str], user: str | None = None) -> Self:
        """Run a command by a login shell; of several each runs if the one before has succeeded."""
        text = command if isinstance(command, str) else " && ".join(command)
        return self._step("RUN", text, *([user] if user else []))

    def set_envs(self, envs: Mapping[str, str]) -> Self:
        """Set variables of the steps that follow, and of every sandbox."""
        return self._step("ENV", *(word for pair in envs.items() for word in pair)) if envs else self

    def set_workdir(self, workdir: AnyPath) -> Self:
        """Set where the steps that follow run, and where sandboxes begin; it is made if need be."""
        return self._step("WORKDIR", str(workdir))

    def set_user(self, user: str) -> Self:
        """Set who runs the steps that follow, and works in sandboxes; made if need be."""
        return self._step("USER", user)

    def skip_cache(self) -> Self:
        """Have every step from here on run, also where its result is known."""
        self._forces_steps = True
        return self

    def remove(
        self,
        path: AnyPath | Sequence[AnyPath],
        *,
        force: bool = False,
        recursive: bool = False,
        user: str | None = None,
    ) -> Self:
        """Remove files, or with `recursive` folders."""
        return self.run_cmd(_words("rm", recursive and "-r", force and "-f", *_paths(path)), user)

    def rename(self, src: AnyPath, dest: AnyPath, *, force: bool = False, user: str | None = None) -> Self:
        """Move a file or folder."""
        return self.run_cmd(_words("mv", force and "-f", str(src), str(dest)), user)

    def make_dir(
        self, path: AnyPath | Sequence[AnyPath], *, mode: int | None = None, user: str | None = None
    ) -> Self:
        """Make folders, with those above them."""
        return self.run_cmd(
            _words("mkdir", "-p", mode is not None and f"-m{_octal(mode)}", *_paths(path)), user
        )

    def make_symlink(
        self, src: AnyPath, dest: AnyPath, *, force: bool = False, user: str | None = None
    ) -> Self:
        """Make the link `dest`, which leads to `src`."""
        return self.run_cmd(_words("ln", "-s", force and "-f", str(src), str(dest)), user)

    def pip_install(self, packages: str | Sequence[str] | None = None, *, g: bool = True) -> Self:
        """Install Python packages for all, with `g=False` for the user; none: the working directory."""
        words = _words("pip", "install", not g and "--user", *(_names(packages) or ["."]))
        return self.run_cmd(words, "root" if g else None)

    def npm_install(
        self, packages: str | Sequence[str] | None = None, *, g: bool = False, dev: bool = False
    ) -> Self:
        """Install packages of npm in the working directory, or with `g` for all."""
        words = _words("npm", "install", g and "-g", dev and "--save-dev", *_names(packages))
        return self.run_cmd(words, "root" if g else None)

    def apt_install(self, packages: str | Sequence[str], *, no_install_recommends: bool = False) -> Self:
        """Install Debian packages."""
        install = _words(
            "apt-get", "install", "-y", no_install_recommends and "--no-install-recommends", *_names(packages)
        )
        return self.run_cmd(["apt-get update", f"DEBIAN_FRONTEND=noninteractive {install}"], "root")

    def git_clone(
        self,
        url: str,
        path: AnyPath | None = None,
        *,
        branch: str | None = None,
        depth: int | None = None,
        user: str | None = None,
    ) -> Self:
        """Clone a repository."""
        of_branch = [f"--branch={branch}", "--single-branch"] if branch else []
        shallow = [f"--depth={depth}"] if depth else []
        words = _words("git", "clone", *of_branch, *shallow, url, *([str(path)] if path else []))
        return self.run_cmd(words, user)

    # --- what sandboxes begin with --------------------

    def set_start_cmd(self, start_cmd: str, ready_cmd: str) -> Self:
        """Have a command run in every sandbox from its beginning; `cloche.ready` says when it is so far."""
        self._last |= {"startCmd": start_cmd, "readyCmd": ready_cmd}
        return self

    def set_ready_cmd(self, ready_cmd: str) -> Self:
        """Have a build, and sandboxes, wait until this command succeeds."""
        self._last["readyCmd"] = ready_cmd
        return self

    def preload(self, *modules: str) -> Self:
        """Have sandboxes begin with these Python modules imported, beside those of the base."""
        self._last["preload"] = [*self._last.get("preload", ()), *modules]
        return self

    def set_isolation(self, isolation: Literal["container", "gvisor"]) -> Self:
        """Have steps and sandboxes separated by that from the host, if it is stronger than the server's."""
        self._last["isolation"] = isolation
        return self

    def _step(self, kind: str, *args: str) -> Self:
        self._steps.append({"type": kind, "args": list(args), "force": self._forces_steps})
        return self


def _callers_folder() -> Path:
    """The folder of the file that makes a template: the first caller outside of this package."""
    frame = inspect.currentframe()
    while (
        frame is not None and frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(_SDK)
    ):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename if frame is not None else "")
    return path.parent.absolute() if path.is_file() else Path.cwd()


def _leads_out(parts: Sequence[str]) -> bool:
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def _octal(mode: int | None) -> str:
    return "" if mode is None else f"{mode:04o}"


def _names(packages: str | Sequence[str] | None) -> list[str]:
    return [packages] if isinstance(packages, str) else list(packages or ())


def _paths(path: AnyPath | Sequence[AnyPath]) -> list[str]:
    return [str(one) for one in ([path] if isinstance(path, str | PurePath) else path)]


def _words(*words: str | Literal[False]) -> str:
    return shlex.join(word for word in words if word is not False)
