"""The source tree as data: modules, their imports, their functions. Used by tests/architecture."""

import ast
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = ("wire", "agent", "sdk", "server", "e2b-compat")


class Module(NamedTuple):
    """One module of a package: its dotted name, its file and what is written in it."""

    name: str
    path: Path
    tree: ast.Module


class Function(NamedTuple):
    """One function or method and how many lines it takes, decorators left out."""

    path: Path
    name: str
    lines: int


@cache
def packaged_modules() -> dict[str, Module]:
    """Every module of the five distributions, by dotted name."""
    found: dict[str, Module] = {}
    for distribution in DISTRIBUTIONS:
        source = ROOT / "packages" / distribution / "src"
        for path in sorted(source.rglob("*.py")):
            parts = list(path.relative_to(source).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            name = ".".join(parts)
            found[name] = Module(name, path, ast.parse(path.read_text(), str(path)))
    return found


def python_files(*folders: str) -> list[Path]:
    """Python files under the folders, without environments and caches."""
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
    ]


def functions(path: Path) -> Iterator[Function]:
    """Every function and method in a file, nested ones too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(path, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)


def imports(module: Module) -> set[str]:
    """Dotted names a module imports at run time, anywhere in it; imports for types alone are left out."""
    names: set[str] = set()
    for node in _runtime_nodes(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            names |= {base} if any(alias.name == "*" for alias in node.names) else set()
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                names.add(inner if inner in packaged_modules() else base)
    return names


def percentile(values: list[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for other in node.orelse:
                yield other
                yield from _runtime_nodes(other)
            continue
        yield node
        yield from _runtime_nodes(node)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    if module.path.name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, node.module] if node.module else package)
