"""The official client and the languages of template `polyglot`; skipped where nobody has built it."""

import json
from collections.abc import Iterator

import pytest

from e2b import NotFoundException
from e2b_code_interpreter import Execution, OutputMessage, Sandbox

LANGUAGES = ("bash", "r", "java", "ruby", "cpp")
LOOPS = {
    "bash": ("kept=5", "echo going; while true; do :; done", "echo $kept"),
    "r": ("kept <- 5", 'cat("going\\n"); repeat {}', "cat(kept)"),
    "java": ("int kept = 5;", 'System.out.println("going"); while (true) {}', "System.out.print(kept);"),
    "ruby": ("kept = 5", 'puts "going"; loop {}', "print kept"),
    "cpp": (
        "#include <iostream>\nint kept = 5;",
        'std::cout << "going\\n"; while (true) {}',
        "std::cout << kept;",
    ),
}


@pytest.fixture(scope="module")
def polyglot() -> Iterator[Sandbox]:
    """A sandbox that the tests of this file share."""
    try:
        created = Sandbox.create(template="polyglot", timeout=600)
    except NotFoundException as error:
        pytest.skip(str(error))
    yield created
    created.kill()


def stdout(execution: Execution) -> str:
    assert execution.error is None, execution.error
    return "".join(execution.logs.stdout)


def test_every_language_keeps_its_state_and_counts(polyglot: Sandbox) -> None:
    for language in LANGUAGES:
        first, _, last = LOOPS[language]
        context = polyglot.create_code_context(language=language, cwd="/tmp")
        assert context.language == language
        assert [polyglot.run_code(code, context=context).execution_count for code in (first, last)] == [1, 2]
        assert stdout(polyglot.run_code(last, context=context)).strip() == "5"
        polyglot.remove_code_context(context)


def test_a_cell_that_is_given_up_is_interrupted_and_the_state_kept(polyglot: Sandbox) -> None:
    class GivenUpError(Exception):
        pass

    def give_up(_: OutputMessage) -> None:
        raise GivenUpError

    for language in LANGUAGES:
        first, loop, last = LOOPS[language]
        assert polyglot.run_code(first, language=language).error is None
        with pytest.raises(GivenUpError):
            polyglot.run_code(loop, language=language, on_stdout=give_up)
        assert stdout(polyglot.run_code(last, language=language)).strip() == "5", language


def test_every_language_starts_in_the_folder_of_its_context(polyglot: Sandbox) -> None:
    cells = {
        "bash": "pwd",
        "r": "cat(getwd())",
        "java": 'System.out.print(System.getProperty("user.dir"));',
        "ruby": "print Dir.pwd",
        "cpp": "#include <iostream>\n#include <unistd.h>\nstd::cout << get_current_dir_name();",
    }
    for language, code in cells.items():
        assert stdout(polyglot.run_code(code, language=language)).strip() == "/home/user"


def test_every_language_names_its_errors(polyglot: Sandbox) -> None:
    cells = {
        "bash": ("false", "ExitStatus", "1"),
        "r": ('stop("bad")', "ERROR", "Error: bad\n"),
        "java": ('throw new RuntimeException("bad");', "RuntimeException", "java.lang.RuntimeException, bad"),
        "ruby": ('raise "bad"', "RuntimeError", "bad"),
        "cpp": ('#include <stdexcept>\nthrow std::logic_error("bad");', "std::logic_error", "bad"),
    }
    for language, (code, name, value) in cells.items():
        error = polyglot.run_code(code, language=language).error
        assert error is not None
        assert (error.name, error.value) == (name, value)


def test_values_and_pictures_come_as_results(polyglot: Sandbox) -> None:
    shown = {"java": ("1 + 1", "2"), "ruby": ("[1, nil]", "[1, nil]"), "cpp": ("1 + 1", "2")}
    for language, (code, text) in shown.items():
        assert polyglot.run_code(code, language=language).text == text
    (value,) = polyglot.run_code("1 + 1", language="r").results
    assert value.text == "[1] 2"
    (plot,) = polyglot.run_code("plot(1:3)", language="r").results
    assert plot.png is not None
    assert plot.png.startswith("iVBOR")


def test_variables_of_one_run_are_put_back(polyglot: Sandbox) -> None:
    cells = {
        "bash": ("export FOO=own", "echo $FOO"),
        "r": ('Sys.setenv(FOO = "own")', 'cat(Sys.getenv("FOO"))'),
        "java": ('System.setProperty("FOO", "own");', 'System.out.print(System.getProperty("FOO"));'),
        "ruby": ('ENV["FOO"] = "own"', 'print ENV["FOO"]'),
        "cpp": (
            '#include <cstdlib>\n#include <iostream>\nsetenv("FOO", "own", 1);',
            'std::cout << getenv("FOO");',
        ),
    }
    for language, (first, code) in cells.items():
        polyglot.run_code(first, language=language)
        during = polyglot.run_code(code, language=language, envs={"FOO": 'a "b" \\'})
        assert stdout(during).strip() == 'a "b" \\', language
        assert stdout(polyglot.run_code(code, language=language)).strip() == "own", language


def test_nobody_waits_for_input(polyglot: Sandbox) -> None:
    assert stdout(polyglot.run_code("cat; read x || echo none", language="bash")) == "none\n"
    error = polyglot.run_code('readline("name? ")', language="r", timeout=60).error
    assert error is not None
    assert error.name == "StdinNotImplementedError"
    assert stdout(polyglot.run_code("cat(kept)", language="r")) == "5"


LATE_KERNEL = """
import sys, time, json, zmq
from jupyter_client.session import Session
info = json.load(open(sys.argv[1]))
session = Session(key=info["key"].encode(), signature_scheme=info["signature_scheme"])
context = zmq.Context()
def bound(kind, port):
    sock = context.socket(kind)
    sock.bind(f"{info['transport']}://{info['ip']}-{info[port]}")
    return sock
iopub = bound(zmq.PUB, "iopub_port")
shell = bound(zmq.ROUTER, "shell_port")
stdin = None
while True:
    ids, request = session.recv(shell, mode=0)
    def publish(state):
        session.send(iopub, "status", {"execution_state": state}, parent=request)
    publish("busy")
    kind = request["header"]["msg_type"]
    if kind == "execute_request":
        session.send(stdin, "input_request", {"prompt": "? ", "password": False}, parent=request, ident=ids)
        session.recv(stdin, mode=0)
    session.send(shell, kind.replace("request", "reply"), {"status": "ok"}, parent=request, ident=ids)
    publish("idle")
    if stdin is None:
        time.sleep(0.5)
        control, stdin = bound(zmq.ROUTER, "control_port"), bound(zmq.ROUTER, "stdin_port")
"""


def test_a_kernel_that_opens_its_questions_late_is_heard(polyglot: Sandbox) -> None:
    folder = "/usr/local/share/jupyter/kernels/late"
    spec = {"argv": ["python3", f"{folder}/late.py", "{connection_file}"], "display_name": "", "language": ""}
    polyglot.files.write(f"{folder}/late.py", LATE_KERNEL, user="root")
    polyglot.files.write(f"{folder}/kernel.json", json.dumps(spec), user="root")
    error = polyglot.run_code("anything", language="late", timeout=20).error
    assert error is not None
    assert error.name == "StdinNotImplementedError"


def test_a_fault_in_a_cell_of_cpp_ends_only_its_context(polyglot: Sandbox) -> None:
    error = polyglot.run_code("int *nowhere = nullptr; *nowhere = 1;", language="cpp").error
    assert error is not None
    assert error.name == "ContextRestarting"
    assert polyglot.run_code("2 + 3", language="cpp").text == "5"
    assert stdout(polyglot.run_code("echo $kept", language="bash")) == "5\n"


def test_an_unknown_language_is_told_in_words_of_jupyter(polyglot: Sandbox) -> None:
    with pytest.raises(Exception, match="No such kernel named fortran"):
        polyglot.run_code("1", language="fortran")
    assert "fortran" not in {context.language for context in polyglot.list_code_contexts()}


def test_the_default_template_runs_bash_and_says_where_the_others_are(sandbox: Sandbox) -> None:
    assert stdout(sandbox.run_code("echo hello", language="bash")) == "hello\n"
    for language in ("r", "java", "ruby", "cpp"):
        with pytest.raises(Exception, match="the template polyglot has all of it"):
            sandbox.run_code("1", language=language)
