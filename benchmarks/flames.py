"""Draw where the time of a call goes, process by process: one flame graph (SVG) for each act.

Usage, as root, with the environment that `cloche env` prints, `CLOCHE_JOURNAL` (STATE/node/journal) and
py-spy (`pip install py-spy`, anywhere) in PATH, under the Python that has the official client:

    flames.py FOLDER [SECONDS]

A box is a function, as wide as the samples that found it or what it called at work; above it is its caller.
What a process does besides is left out, and so is waiting for another one. Each process is drawn equally
wide, since sampling holds it up: how long it takes is for a clock to say.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import processes
import the_server

from e2b_code_interpreter import Sandbox

RATE_HZ = 400
WIDTH, ROW, CHARACTER = 1200.0, 16, 6.2
NARROWEST = 3.0
"""A box that would be narrower is left out."""
PART = 10_000
"""How many samples each process is scaled to."""
_FRAME = re.compile(r"(.+) \((.+?)(?::\d+)?\)$")
_WAITS = ("select (selectors.py)", "wait (threading.py)", "read (sync.py)")


class Part(NamedTuple):
    """What is kept of one process: the stacks that hold a frame of `inside`, from there on."""

    name: str
    inside: str


_CALLBACK = r"^_run \(events\.py"
_EDGE, _AGENT = Part("edge", _CALLBACK), Part("agent", _CALLBACK)
ACTS: dict[str, tuple[Part, ...]] = {
    "create": (
        Part("client", r"^_create \(main\.py"),
        _EDGE,
        Part("api", rf"{_CALLBACK}|^(read|write)_now "),
        Part("node", r"^(_answer|introduce|give_network) "),
    ),
    "exec": (Part("client", r"^run "), _EDGE, _AGENT),
    "run_code": (Part("client", r"^run_code "), _EDGE, _AGENT),
}
_made: list[Sandbox] = []


@cache
def kept() -> Sandbox:
    """The sandbox that calls go to."""
    sandbox = Sandbox.create(timeout=3600)
    sandbox.run_code("1")
    return sandbox


def create() -> None:
    """A create that finds one ready."""
    the_server.until_one_is_ready()
    _made.append(Sandbox.create(timeout=600))


CALLS: dict[str, Callable[[], object]] = {
    "create": create,
    "exec": lambda: kept().commands.run("echo 1"),
    "run_code": lambda: kept().run_code("1+1"),
}


def main() -> None:
    """Record every process of every act, one at a time, and draw."""
    folder = Path(sys.argv[1])
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 15
    for act, parts in ACTS.items():
        CALLS[act]()
        stacks: Counter[tuple[str, ...]] = Counter()
        for part in parts:
            stacks += recorded(part, CALLS[act], seconds)
            while _made:
                _made.pop().kill()
            the_server.until_quiet()
        (folder / f"{act}.svg").write_text(drawn(stacks, f"{act}: {', '.join(part.name for part in parts)}"))
    kept().kill()


def recorded(part: Part, call: Callable[[], object], seconds: int) -> Counter[tuple[str, ...]]:
    """Repeat a call while a process is sampled; what is kept of that, in all `PART`."""
    with tempfile.NamedTemporaryFile() as file:
        options = ["-f", "raw", "-r", str(RATE_HZ), "-d", str(seconds), "-o", file.name]
        argv = ["py-spy", "record", *options, "-p", str(pid_of(part.name))]
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as spy:
            while spy.poll() is None:
                call()
        found = folded(Path(file.name).read_text(), part)
    return Counter({stack: round(PART * count / found.total()) for stack, count in found.items()})


def pid_of(name: str) -> int:
    """The process of a part: this one, the agent of the kept sandbox, or one of the server's."""
    if name == "client":
        return os.getpid()
    if name == "agent":
        record: dict[str, Any] = the_server.records()[kept().sandbox_id]
        return int(record["init"]["pid"])
    comms = processes.PROC.glob("[0-9]*/comm")
    named = [path for path in comms if path.read_text().strip() == f"cloche-{name}"]
    return int(named[0].parent.name)


def folded(raw: str, part: Part) -> Counter[tuple[str, ...]]:
    """The stacks of a call, from its first frame on, each with its samples."""
    inside = re.compile(part.inside)
    counts: Counter[tuple[str, ...]] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_short(frame) for frame in stack.split(";")]
        first = next((at for at, frame in enumerate(frames) if inside.search(frame)), None)
        if first is not None and frames[-1] not in _WAITS:
            counts[part.name, *frames[first:]] += int(count)
    return counts


def _short(frame: str) -> str:
    """A function and its file's name: no path of the machine, no line."""
    found = _FRAME.match(frame)
    if found is None:
        return frame
    return f"{found[1].rpartition('.')[2]} ({Path(found[2]).name})"


def drawn(stacks: Counter[tuple[str, ...]], title: str) -> str:
    """The picture."""
    boxes = [*_boxes(stacks, (), 0.0, WIDTH / stacks.total())]
    height = ROW * (2 + max(box.depth for box in boxes))
    size = f'width="{WIDTH:.0f}" height="{height}" font-family="monospace" font-size="10"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', f'<text x="4" y="12">{escape(title)}</text>']
    return "\n".join([*lines, *map(_element, boxes), "</svg>\n"])


class _Box(NamedTuple):
    depth: int
    left: float
    width: float
    share: float
    """Of its process."""
    name: str


def _boxes(
    stacks: Counter[tuple[str, ...]], above: tuple[str, ...], left: float, scale: float
) -> Iterator[_Box]:
    """What is below a stack, and below that; of each the widest first."""
    depth = len(above)
    widths: Counter[str] = Counter()
    for stack, count in stacks.items():
        if len(stack) > depth and stack[:depth] == above:
            widths[stack[depth]] += count
    for name, count in widths.most_common() if above else widths.items():
        if count * scale < NARROWEST:
            continue
        yield _Box(depth + 1, left, count * scale, count / PART, name)
        yield from _boxes(stacks, (*above, name), left, scale)
        left += count * scale


def _element(box: _Box) -> str:
    hue = 20 + sum(box.name.encode()) % 35
    place = f'x="{box.left:.1f}" y="{ROW * box.depth}" width="{box.width:.1f}" height="{ROW - 1}"'
    tip = f"<title>{escape(box.name)}: {box.share:.1%}</title>"
    shown = escape(box.name[: int(box.width / CHARACTER)]) if box.width > 4 * CHARACTER else ""
    text = f'<text x="{box.left + 2:.1f}" y="{ROW * box.depth + 11}">{shown}</text>' if shown else ""
    return f'<g>{tip}<rect {place} fill="hsl({hue},80%,68%)"/>{text}</g>'


if __name__ == "__main__":
    main()
