"""The official code interpreter client: state, streams, results, errors, contexts."""

import base64
import io
import time

import pytest
from PIL import Image

from e2b_code_interpreter import Execution, OutputMessage, Result, Sandbox, TimeoutException


def test_the_last_expression_is_the_result(sandbox: Sandbox) -> None:
    assert sandbox.run_code("1 + 1").text == "2"


def test_state_is_kept_between_calls(sandbox: Sandbox) -> None:
    sandbox.run_code("kept = 40")
    sandbox.run_code("import math\ndef add(n): return kept + n")
    assert sandbox.run_code("add(math.floor(2.5))").text == "42"


def test_executions_are_counted_from_one(own_sandbox: Sandbox) -> None:
    counts = [own_sandbox.run_code("None").execution_count for _ in range(3)]
    assert counts == [1, 2, 3]


def test_output_arrives_while_the_cell_still_runs(sandbox: Sandbox) -> None:
    seen: list[str] = []

    def note(message: OutputMessage) -> None:
        seen.append(message.line.strip())
        sandbox.files.write("/tmp/has-come", message.line)

    code = """
import os, sys, time
print('first', flush=True)
while not os.path.exists('/tmp/has-come'):
    time.sleep(0.05)
print('second', file=sys.stderr)
"""
    execution = sandbox.run_code(code, on_stdout=note, on_stderr=note)
    assert seen == ["first", "second"]
    assert execution.logs.stdout == ["first\n"]
    assert execution.logs.stderr == ["second\n"]


def test_results_are_streamed_and_kept(sandbox: Sandbox) -> None:
    streamed: list[Result] = []
    code = "from IPython.display import HTML, Markdown, display\ndisplay(HTML('<b>x</b>'))\nMarkdown('*y*')"
    execution = sandbox.run_code(code, on_result=streamed.append)
    assert [result.is_main_result for result in execution.results] == [False, True]
    assert execution.results[0].html == "<b>x</b>"
    assert execution.results[1].markdown == "*y*"
    assert len(streamed) == 2


def test_many_kinds_of_result_come_through(sandbox: Sandbox) -> None:
    code = """
from IPython.display import JSON, Latex, SVG, display
display(Latex('$x^2$'))
display(JSON({'a': [1, 2]}))
display(SVG('<svg xmlns="http://www.w3.org/2000/svg"/>'))
{'b': 2}
"""
    latex, json, svg, main = sandbox.run_code(code).results
    assert latex.latex == "$x^2$"
    assert json.json == {"a": [1, 2]}
    assert "<svg" in svg.svg
    assert main.json == {"b": 2}


def test_a_data_frame_is_html_and_data(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': [3, 4]})")
    assert "<table" in execution.results[0].html
    assert execution.results[0].data == {"a": [1, 2], "b": [3, 4]}


def test_a_figure_comes_back_as_a_png(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()")
    assert_is_png(base64.b64decode(execution.results[0].png))


def test_an_error_has_a_name_a_value_and_a_traceback(sandbox: Sandbox) -> None:
    failed: Execution = sandbox.run_code("def f():\n    return 1 / 0\nf()")
    assert failed.error is not None
    assert failed.error.name == "ZeroDivisionError"
    assert failed.error.value == "division by zero"
    assert "line 2" in failed.error.traceback
    assert "\x1b[" not in failed.error.traceback
    assert sandbox.run_code("'alive'").text == "alive"


def test_magics_shell_lines_and_top_level_await_work(sandbox: Sandbox) -> None:
    assert "/home/user" in "".join(sandbox.run_code("!pwd").logs.stdout)
    assert sandbox.run_code("%env MARK=7\nimport os\nos.environ['MARK']").text == "7"
    assert sandbox.run_code("import asyncio\nawait asyncio.sleep(0, 'awaited')").text == "awaited"


def test_envs_of_a_call_override_those_of_the_sandbox_and_go_away() -> None:
    with Sandbox.create(timeout=60, envs={"WORD": "global", "KEPT": "yes"}) as created:
        read = "import os\nos.environ.get('WORD'), os.environ.get('KEPT'), os.environ.get('ONCE')"
        assert created.run_code(read).text == "('global', 'yes', None)"
        once = created.run_code(read, envs={"WORD": "local", "ONCE": "1"})
        assert once.text == "('local', 'yes', '1')"
        assert created.run_code(read).text == "('global', 'yes', None)"


def test_contexts_are_apart_and_have_their_own_folder(sandbox: Sandbox) -> None:
    sandbox.run_code("apart = 1")
    context = sandbox.create_code_context(cwd="/tmp")
    listed = [item.id for item in sandbox.list_code_contexts()]
    assert context.id in listed
    assert (
        sandbox.run_code("import os\nos.getcwd(), 'apart' in globals()", context=context).text
        == "('/tmp', False)"
    )
    sandbox.run_code("gone = 1", context=context)
    sandbox.restart_code_context(context)
    assert sandbox.run_code("'gone' in globals()", context=context).text == "False"
    sandbox.remove_code_context(context)
    assert context.id not in [item.id for item in sandbox.list_code_contexts()]


def test_a_cell_that_takes_too_long_is_interrupted_and_the_next_one_runs(sandbox: Sandbox) -> None:
    sandbox.run_code("survives = 'state'")
    with pytest.raises(TimeoutException):
        sandbox.run_code("import time\ntime.sleep(60)", timeout=1)
    started = time.monotonic()
    assert sandbox.run_code("survives").text == "state"
    assert time.monotonic() - started < 5


def test_a_killed_sandbox_says_so_to_a_running_cell() -> None:
    created = Sandbox.create(timeout=60)

    def kill(_message: OutputMessage) -> None:
        created.kill()

    with pytest.raises(TimeoutException, match="killed"):
        created.run_code("import time\nprint('up', flush=True)\ntime.sleep(60)", on_stdout=kill)


def test_the_documents_data_analysis_gives_a_plot_that_is_a_png(sandbox: Sandbox) -> None:
    sandbox.files.write("/tmp/data.csv", "name,age,city\nJohn,25,NYC\nJane,30,LA")
    code = """
import pandas as pd
import matplotlib.pyplot as plt

df = pd.read_csv('/tmp/data.csv')
print("Data shape:", df.shape)
print(df.head())
plt.figure(figsize=(8, 6))
plt.bar(df['name'], df['age'])
plt.title('Age by Name')
plt.savefig('/tmp/plot.png')
print("Plot saved to /tmp/plot.png")
"""
    execution = sandbox.run_code(code)
    assert execution.error is None
    assert "Data shape: (2, 3)" in "".join(execution.logs.stdout)
    plot = bytes(sandbox.files.read("/tmp/plot.png", format="bytes"))
    assert assert_is_png(plot).size == (800, 600)


def assert_is_png(data: bytes) -> Image.Image:
    """Decode it whole, so that a cut file fails too."""
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    image.load()
    return image


def test_programs_of_the_sandbox_see_the_health_of_the_interpreter_and_no_more(sandbox: Sandbox) -> None:
    # The official suite waits for it there.
    url = "http://0.0.0.0:49999"
    assert sandbox.commands.run(f"curl -s {url}/health").stdout == '"OK"'
    for path in ("/contexts", "/execute"):
        asked = sandbox.commands.run(f"curl -s -o /dev/null -w '%{{http_code}}' -d '{{}}' {url}{path}")
        assert asked.stdout == "404", path
