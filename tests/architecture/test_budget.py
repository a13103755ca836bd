"""Size budget: file p95 <= 450 lines, hard 600; function p95 <= 45, hard 80. Empty names are not taken."""

from __future__ import annotations

import ast

import pytest
from tests.support.source import ROOT, functions, packaged_modules, percentile, python_files

EVERYWHERE = ("packages", "tests", "tools", "benchmarks")
EMPTY_WORDS = {"utils", "util", "helper", "helpers", "manager", "managers", "misc", "common"}


def test_no_file_is_longer_than_600_lines_and_most_stay_under_450() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in python_files(*EVERYWHERE)}
    assert not {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 600}
    packaged = [count for path, count in lines.items() if path.is_relative_to(ROOT / "packages")]
    assert percentile(packaged, 0.95) <= 450


def test_no_function_is_longer_than_80_lines_and_most_stay_under_45() -> None:
    found = [function for path in python_files(*EVERYWHERE) for function in functions(path)]
    too_long = {f"{f.path.relative_to(ROOT)}:{f.name}": f.lines for f in found if f.lines > 80}
    assert not too_long
    packaged = [function.lines for function in found if function.path.is_relative_to(ROOT / "packages")]
    assert percentile(packaged, 0.95) <= 45


def test_no_module_or_class_hides_behind_an_empty_word() -> None:
    modules = {name for name in packaged_modules() if EMPTY_WORDS & set(name.replace("_", ".").split("."))}
    classes = {
        f"{module.name}.{node.name}"
        for module in packaged_modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and node.name.lower().endswith(tuple(EMPTY_WORDS))
    }
    assert not modules | classes


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(tree: ast.Module | ast.ClassDef) -> list[Definition]:
    found: list[Definition] = []
    for node in tree.body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        found.append(node)
        if isinstance(node, ast.ClassDef):
            found += public_definitions(node)
    return found


@pytest.mark.parametrize("name", sorted(packaged_modules()))
def test_every_public_name_says_what_it_is_for(name: str) -> None:
    tree = packaged_modules()[name].tree
    assert not tree.body or ast.get_docstring(tree), f"{name} has no docstring"
    silent = [
        node.name
        for node in public_definitions(tree)
        if not ast.get_docstring(node) and not any(is_overload(mark) for mark in node.decorator_list)
    ]
    assert not silent


def is_overload(mark: ast.expr) -> bool:
    text = ast.unparse(mark)
    return text.endswith(("overload", "override", ".setter", ".deleter"))


def test_the_percentile_is_the_value_that_95_of_100_do_not_exceed() -> None:
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([7], 0.95) == 7
