"""The official code interpreter client: JavaScript, TypeScript, and charts of Python's figures."""

import pytest

from e2b_code_interpreter import Sandbox


def test_javascript_keeps_its_names_and_awaits(sandbox: Sandbox) -> None:
    sandbox.run_code("import path from 'path'; const half = await Promise.resolve(21)", language="js")
    execution = sandbox.run_code("console.log(path.sep); half * 2", language="JavaScript")
    assert (execution.text, execution.logs.stdout) == ("42", ["/\n"])


def test_typescript_has_a_context_of_its_own_and_loses_its_types(sandbox: Sandbox) -> None:
    code = "enum Answer { Yes = 42 }\nconst show = <T,>(value: T): T => value\nshow<number>(Answer.Yes)"
    assert sandbox.run_code(code, language="ts").text == "42"
    assert sandbox.run_code("typeof show", language="js").text == "undefined"


def test_an_error_in_javascript_has_a_name_a_value_and_a_traceback(sandbox: Sandbox) -> None:
    failed = sandbox.run_code("function f() { return nope }\nf()", language="js").error
    assert failed is not None
    assert (failed.name, failed.value) == ("ReferenceError", "nope is not defined")
    assert "at f (" in failed.traceback


def test_npm_packages_are_imported_where_they_are_installed(sandbox: Sandbox) -> None:
    """Laid out as `npm install` does it, in the working folder and with -g; no registry is asked."""
    for folder in ("/home/user", "/usr/local/lib"):
        name = folder.replace("/", "")
        package = f"{folder}/node_modules/{name}"
        sandbox.files.write(
            f"{package}/package.json", f'{{"name":"{name}","type":"module","exports":"./x.js"}}'
        )
        sandbox.files.write(f"{package}/x.js", f"export default 'from {folder}'; export const one = 1")
        code = f"import found, {{ one }} from '{name}'; [found, one]"
        assert sandbox.run_code(code, language="js").text == f"[ 'from {folder}', 1 ]"


def test_both_boot_contexts_are_listed(own_sandbox: Sandbox) -> None:
    listed = own_sandbox.list_code_contexts()
    assert [(context.language, context.cwd) for context in listed] == [
        ("python", "/home/user"),
        ("javascript", "/home/user"),
    ]


@pytest.mark.parametrize("code", ["while (true) {}", "await new Promise(() => {})"])
def test_javascript_that_outlives_its_client_is_interrupted(sandbox: Sandbox, code: str) -> None:
    sandbox.run_code("var kept = 7", language="js")
    with pytest.raises(Exception, match=r"(?i)time"):
        sandbox.run_code(code, language="js", timeout=1)
    assert sandbox.run_code("kept", language="js").text == "7"


@pytest.mark.parametrize(
    ("draw", "kind"),
    [
        ("plt.plot([1, 2, 3], label='a')", "line"),
        ("plt.scatter([1, 2], [3, 4])", "scatter"),
        ("plt.bar(['a', 'b'], [1, 2])", "bar"),
        ("plt.pie([1, 2], labels=['a', 'b'])", "pie"),
        ("plt.boxplot([[1, 2, 3, 4], [2, 4, 6, 8]], patch_artist=True)", "box_and_whisker"),
        ("_, (one, two) = plt.subplots(1, 2); one.plot([1, 2]); two.bar(['a'], [1])", "superchart"),
        ("plt.imshow([[1, 2], [3, 4]])", "unknown"),
    ],
)
def test_a_figure_comes_with_its_chart(sandbox: Sandbox, draw: str, kind: str) -> None:
    execution = sandbox.run_code(f"import matplotlib.pyplot as plt\n{draw}\nplt.show()")
    (shown,) = execution.results
    assert execution.logs.stderr == []
    assert shown.png
    assert shown.chart is not None
    assert shown.chart.type == kind
