"""What a value is shown as: text, pictures, tables, JSON; and what an error says."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from cloche_agent.kernels.channel import KernelProtocolError
from cloche_agent.kernels.results import line_of, result_of

if TYPE_CHECKING:
    from tests.unit.kernels.conftest import Interpreter

pytestmark = pytest.mark.anyio
PNG = b"\x89PNG\r\n\x1a\n"


def is_png(text: str | None) -> bool:
    return base64.b64decode(text or "").startswith(PNG)


def test_every_media_type_has_its_field() -> None:
    bundle: dict[str, object] = {
        "text/plain": "t", "text/html": "h", "text/markdown": "m", "image/svg+xml": "s", "image/png": "p",
        "image/jpeg": "j", "application/pdf": "f", "text/latex": "l", "application/javascript": "v",
        "application/json": [1], "e2b/data": {"a": [1]}, "e2b/chart": {"type": "line"}, "x/y": {"z": 1},
    }  # fmt: skip
    result = result_of(bundle, is_main=True)
    assert (result.text, result.html, result.markdown, result.svg, result.png) == ("t", "h", "m", "s", "p")
    assert (result.jpeg, result.pdf, result.latex, result.javascript) == ("j", "f", "l", "v")
    assert (result.json, result.data, result.chart) == ([1], {"a": [1]}, {"type": "line"})
    assert (result.extra, result.is_main_result) == ({"x/y": {"z": 1}}, True)


def test_fields_of_the_wrong_type_are_left_out() -> None:
    result = result_of({"text/plain": 5, "image/png": None, "e2b/data": [1], "text/html": "h"}, is_main=False)
    assert result.formats() == ["html"]


@pytest.mark.parametrize(
    ("plain", "text"), [("'a'", "a"), ('"a"', "a"), ("'a\"", "'a\""), ("'", ""), ("", ""), ("a'b'", "a'b'")]
)
def test_matching_outer_quotes_are_stripped(plain: str, text: str) -> None:
    assert result_of({"text/plain": plain}, is_main=True).text == text


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "spam"},
        {"type": "stdout", "text": 5},
        {"type": "result"},
        {"type": "started", "count": True},
    ],
)
def test_a_malformed_message_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(KernelProtocolError):
        line_of(message)


async def test_only_the_last_expression_is_the_main_result(interpreter: Interpreter) -> None:
    execution = await interpreter.run(
        "from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))\n1\n2"
    )
    assert [(result.html, result.text, result.is_main_result) for result in execution.results] == [
        ("<b>x</b>", "<IPython.core.display.HTML object>", False),
        (None, "2", True),
    ]
    assert (await interpreter.run("3;")).results == []


async def test_a_value_shows_itself_in_its_own_formats(interpreter: Interpreter) -> None:
    code = """
class Rich:
    def __repr__(self): return 'plain'
    def _repr_html_(self): return '<i>'
    def _repr_markdown_(self): return '# m'
    def _repr_latex_(self): return '$x$'
    def _repr_svg_(self): return '<svg/>'
    def _repr_png_(self): return b'png'
    def _repr_jpeg_(self): return b'jpeg'
    def _repr_pdf_(self): return b'pdf'
    def _repr_json_(self): return {'a': float('nan')}
    def _repr_javascript_(self): return 'alert()'
    def _repr_mimebundle_(self, include=None, exclude=None): return {'x/y': 1}
Rich()
"""
    (result,) = (await interpreter.run(code)).results
    assert (result.text, result.html, result.markdown, result.latex) == ("plain", "<i>", "# m", "$x$")
    assert [base64.b64decode(data or "") for data in (result.png, result.jpeg, result.pdf)] == [
        b"png", b"jpeg", b"pdf"
    ]  # fmt: skip
    assert (result.svg, result.json, result.javascript, result.extra) == (
        "<svg/>", {"a": None}, "alert()", {"x/y": 1}
    )  # fmt: skip


async def test_containers_are_json_where_json_can_say_them(interpreter: Interpreter) -> None:
    values = "{1: (True, None)}, numpy.arange(2), numpy.float64(0.5), datetime.date(2026, 1, 2), Point(1)"
    point = "@dataclasses.dataclass\nclass Point:\n    x: int"
    code = f"import dataclasses, datetime, numpy\n{point}\n[{values}]"
    (result,) = (await interpreter.run(code)).results
    assert result.json == [{"1": [True, None]}, [0, 1], 0.5, "2026-01-02", {"x": 1}]
    assert (await interpreter.run("[object]")).results[0].json is None
    assert (await interpreter.run("x = []; x.append(x); x")).results[0].json is None


async def test_a_table_is_text_html_and_columns(interpreter: Interpreter) -> None:
    code = """
import pandas as pd
pd.DataFrame({'a': [1, 2.5, float('nan')], 'b': pd.to_datetime(['2026-01-02'] * 3), 3: list('xyz')})
"""
    (result,) = (await interpreter.run(code)).results
    assert result.data == {"a": [1.0, 2.5, None], "b": ["2026-01-02T00:00:00"] * 3, "3": ["x", "y", "z"]}
    assert "<table" in (result.html or "")
    assert "2026-01-02" in (result.text or "")
    execution = await interpreter.run("pd.Series([1, 2], name='s')")
    assert "Name: s" in (execution.text or "")


async def test_figures_are_pictures_at_show_and_at_the_end_of_the_cell(interpreter: Interpreter) -> None:
    shown = await interpreter.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n5")
    picture, main = shown.results
    assert is_png(picture.png)
    assert (picture.text, picture.extra) == ("<Figure size 640x480 with 1 Axes>", {})
    assert (main.text, main.is_main_result) == ("5", True)
    flushed = await interpreter.run("%matplotlib inline\nfigure = plt.figure(); plt.bar(['a'], [1]);")
    assert [is_png(result.png) for result in flushed.results] == [True]
    assert (await interpreter.run("1")).results[0].png is None
    assert is_png((await interpreter.run("figure")).results[0].png)


async def test_a_saved_figure_is_shown_once(interpreter: Interpreter) -> None:
    draw = "plt.figure(figsize=(8, 6))\nplt.bar(['a'], [1])"
    code = f"import matplotlib.pyplot as plt\n{draw}\nplt.savefig('plot.png')"
    execution = await interpreter.run(code)
    assert [is_png(result.png) for result in execution.results] == [True]
    assert await interpreter.text("open('plot.png', 'rb').read(4)") == r"b'\x89PNG'"


async def test_matplotlib_is_not_loaded_before_it_is_asked_for(interpreter: Interpreter) -> None:
    names = "{'matplotlib', 'pandas', 'numpy', 'PIL', 'sqlite3', 'e2b_charts', 'pydantic'}"
    assert await interpreter.text(f"import sys; {names} & set(sys.modules)") == "set()"


async def test_pictures_of_pillow_are_shown_when_saved_or_shown(interpreter: Interpreter) -> None:
    code = "from PIL import Image\nimage = Image.new('RGB', (4, 4))\n"
    for action in ("image.save('x.png')", "image.show()", "image"):
        (result,) = (await interpreter.run(code + action)).results
        assert is_png(result.png)


async def test_the_first_error_is_told_with_its_place(interpreter: Interpreter) -> None:
    execution = await interpreter.run("def f():\n    return 1 / 0\nf()")
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("ZeroDivisionError", "division by zero")
    assert "----> 2     return 1 / 0" in execution.error.traceback
    assert "\x1b" not in execution.error.traceback


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("x = (", "SyntaxError"),
        ("  x\n y", "IndentationError"),
        ("%no_such_magic", "UsageError"),
        ("raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup"),
        ("import asyncio; await asyncio.sleep('x')", "TypeError"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "E"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    ],
)
async def test_every_kind_of_error_is_told_once(interpreter: Interpreter, code: str, name: str) -> None:
    events = await interpreter.events(code)
    assert [event["name"] for event in events if event["type"] == "error"] == [name]
    assert (await interpreter.run("1")).text == "1"


async def test_top_level_await_shares_one_loop(interpreter: Interpreter) -> None:
    await interpreter.run("import asyncio\nqueue = asyncio.Queue()\nawait queue.put(4)")
    assert await interpreter.text("await queue.get()") == "4"
    assert await interpreter.text("asyncio.run(asyncio.sleep(0, 'own loop'))") == "own loop"
    assert await interpreter.text("await asyncio.sleep(0, 'shared loop')") == "shared loop"


async def test_a_result_too_large_for_a_frame_is_left_out_with_a_word(interpreter: Interpreter) -> None:
    execution = await interpreter.run("'x' * (33 << 20)")
    assert execution.error is None
    assert "text/plain of a result left out: larger than 32 MiB" in "".join(execution.logs.stderr)
    assert await interpreter.text("len('x' * (20 << 20))") == "20971520"


async def test_a_cell_that_is_indented_or_empty_runs(interpreter: Interpreter) -> None:
    assert await interpreter.text("\n    x = 1\n    x\n    ") == "1"
    assert (await interpreter.run("  \n")).error is None


# --- charts: e2b-charts is in the template, not here


@pytest.mark.parametrize(
    ("body", "chart"),
    [
        (
            "{'type': 'bar', 'elements': [{'value': numpy.int64(3)}, float('nan')]}",
            {"type": "bar", "elements": [{"value": 3}, None]},
        ),
        ("warnings.warn('odd') or {'type': 'line'}", {"type": "line"}),
        ("1 / 0", {}),
        ("['no object']", {}),
    ],
)
async def test_a_figure_is_shown_with_its_chart_whatever_the_extraction_does(
    interpreter: Interpreter, body: str, chart: object
) -> None:
    execution = await interpreter.run(
        "import numpy, sys, types, warnings\nstand_in = types.ModuleType('e2b_charts')\n"
        f"stand_in.chart_figure_to_dict = lambda figure: {body}\nsys.modules['e2b_charts'] = stand_in\n"
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    )
    assert (execution.error, execution.logs.stderr) == (None, [])
    (shown,) = execution.results
    assert is_png(shown.png)
    assert shown.chart == chart


async def test_without_e2b_charts_a_figure_is_a_picture(interpreter: Interpreter) -> None:
    execution = await interpreter.run(
        "import sys; sys.modules['e2b_charts'] = None\n"
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    )
    assert execution.error is None
    assert is_png(execution.results[0].png)
    assert execution.results[0].chart is None
