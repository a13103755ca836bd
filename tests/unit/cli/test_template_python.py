"""A template as one Python file: which description it comes to, of our builder and of the official one."""

import sys
import tarfile
from pathlib import Path

import pytest
from tests.support import official

from cloche_server.cli import template_python
from cloche_server.cli.template_python import FromPython
from cloche_server.templates.steps import Step
from cloche_wire.errors import InvalidArgument

OURS = """
from cloche import Template
from cloche.ready import wait_for_file

import beside

print("said while it is read")
template = (
    Template(name=beside.NAME, memory_mb=512)
    .from_image("e2bdev/base")
    .copy("page.html", "/srv/")
    .run_cmd("make")
    .preload("polars")
    .set_start_cmd("serve", wait_for_file("/up"))
)
if __name__ == "__main__":
    raise SystemExit("built by the file itself")
"""
OFFICIAL = """
from e2b import Template, wait_for_file

mine = Template().from_image("e2bdev/base").copy("page.html", "/srv/", mode=0o644).run_cmd("make")
mine.set_start_cmd("serve", wait_for_file("/up"))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "page.html").write_text("a page")
    (tmp_path / "beside.py").write_text("NAME = 'mine'\n")
    return tmp_path / "template.py"


def read(file: Path, text: str, python: str = sys.executable) -> FromPython:
    file.write_text(text)
    scratch = file.parent / "scratch"
    scratch.mkdir()
    return template_python.read(file, scratch, python)


def test_one_of_our_builder_says_all_of_a_template(file: Path) -> None:
    (description, archives), said = read(file, OURS)
    assert (said.name, said.memory_mib, said.cpu_count) == ("mine", 512, None)
    (packed,) = archives
    assert description.from_image == "e2bdev/base"
    assert description.steps == [
        Step("COPY", ["page.html", "/srv/", "", ""], packed.files_hash),
        Step("RUN", ["make"]),
    ]
    assert (description.start_cmd, description.ready_cmd) == ("serve", "[ -f /up ]")
    assert description.preload == ["polars"]
    with tarfile.open(packed.path) as archive:
        assert archive.getnames() == ["page.html"]


@pytest.mark.needs("uv")
def test_one_of_the_official_builder_is_built_too(file: Path) -> None:
    """By the interpreter that has it; it may be called anything, as long as it is the only one."""
    (description, archives), said = read(file, OFFICIAL, str(official.interpreter()))
    assert said.name == ""
    assert [(step.type, step.args[1:]) for step in description.steps] == [
        ("COPY", ["/srv/", "", "0644"]),
        ("RUN", []),
    ]
    assert description.steps[0].files_hash == archives[0].files_hash
    assert (description.start_cmd, description.ready_cmd) == ("serve", "[ -f /up ]")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "status 1"),
        ("from cloche import Template\na, b = Template(), Template()", "status 1"),
        ("raise SystemExit(7)", "status 7"),
        ("import no_such_module", "status 1"),
        ("from cloche import Template\ntemplate = Template().copy('nothing', '/')", "no such file"),
        ("import os\nos._exit(0)", "cannot read"),
    ],
)
def test_what_describes_nothing_is_refused(
    file: Path, text: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        read(file, text)
    if "status 1" in reason:
        assert "template" in capfd.readouterr().err


def test_an_interpreter_that_is_not_there_is_told(file: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot run"):
        read(file, OURS, "/no/such/python")
