"""Languages that the machine of the tests lacks, and what Jupyter kernels are told."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from cloche_agent.kernels.driven_kernel.jupyter import JupyterBackend
from cloche_agent.kernels.driven_kernel.variables import LANGUAGES
from cloche_agent.kernels.driven_kernel.voice import Voice
from cloche_agent.kernels.languages import find_language

if TYPE_CHECKING:
    from tests.unit.kernels.conftest import Interpreter


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("r", "code in R needs R, IRkernel, and python3 with jupyter_client"),
        ("java", "code in Java needs a JDK"),
        ("fortran", "'fortran' is none of python, "),
        ("no/such name", "No such kernel named no/such name"),
        ("-f", "No such kernel named -f"),
    ],
)
async def test_what_is_missing_is_told_and_leaves_no_context(
    interpreter: Interpreter, language: str, told: str
) -> None:
    for path in ("/execute", "/contexts"):
        status, text = await interpreter.body("POST", path, {"code": "1", "language": language})
        assert (status, told in text) == (500, True), text
    _, listed = await interpreter.body("GET", "/contexts")
    assert language not in {context["language"] for context in json.loads(listed)}


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (None, "python"),
        ("C++", "cpp"),
        (" R ", "r"),
        ("rb", "ruby"),
        ("sh", "bash"),
        ("xeus-lua", "xeus-lua"),
    ],
)
def test_languages_go_by_several_names(asked: str | None, name: str) -> None:
    found = find_language(asked)
    assert found is not None
    assert found.name == name


def test_values_of_variables_are_text_in_every_language() -> None:
    hostile = 'a"); system("x") # \\ \n ü €'
    for language in LANGUAGES.values():
        for code in (language.assign({"A": hostile, "B": None}), language.borrow({"A": hostile})):
            assert json.dumps(hostile, ensure_ascii=False) in code
            assert "\n ü" not in code
    assert LANGUAGES["r"].assign({}) == ""


def test_interrupts_that_came_after_the_last_look_are_not_passed_on_by_the_next_run() -> None:
    with socket.socket() as nobody:
        backend = JupyterBackend("any")
        for _ in range(20):  # more than its pipe holds
            for _ in range(4096):
                backend.interrupt()
            backend.settle(Voice(nobody))
