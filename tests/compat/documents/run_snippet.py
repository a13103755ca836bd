"""Runs one snippet of the document as a program of its own, in a folder that holds its plan.json.

What the plan puts into a sandbox is put there when the snippet enters it (`with Sandbox() as sandbox`).
"""

import json
import shlex
import sys
import warnings
from pathlib import Path

import e2b_code_interpreter

STUB = Path(__file__).with_name("tls_stub.py")
TRUST = "import os\nos.environ['REQUESTS_CA_BUNDLE'] = '/etc/ssl/certs/ca-certificates.crt'"


def seed(sandbox: e2b_code_interpreter.Sandbox, plan: dict) -> None:
    """Put the plan's files into the sandbox, and start its host of the internet."""
    for path, content in plan["sandbox_files"]:
        sandbox.files.write(path, content)
    if plan["host"]:
        sandbox.files.write("/tmp/tls_stub.py", STUB.read_text())
        command = shlex.join(["python3", "/tmp/tls_stub.py", *plan["host"]])
        sandbox.commands.run(f"{command} > /tmp/stub.out 2>&1", user="root", background=True, timeout=0)
        ready = "until grep -q ready /tmp/stub.out; do sleep 0.1; done"
        sandbox.commands.run(
            f"timeout 30 sh -c {shlex.quote(ready)} || (cat /tmp/stub.out >&2; false)", user="root"
        )
        sandbox.run_code(TRUST)


def main() -> None:
    """Run the prelude and the snippet in one namespace, the snippet to the letter."""
    plan = json.loads(Path("plan.json").read_text())
    enter = e2b_code_interpreter.Sandbox.__enter__

    def enter_seeded(self: e2b_code_interpreter.Sandbox) -> e2b_code_interpreter.Sandbox:
        sandbox = enter(self)
        seed(sandbox, plan)
        return sandbox

    e2b_code_interpreter.Sandbox.__enter__ = enter_seeded
    # The document imports the class once, at its top, and uses it on every page after that.
    namespace = {"__name__": "__main__", "Sandbox": e2b_code_interpreter.Sandbox}
    try:
        for name in ("prelude.py", "snippet.py"):
            exec(compile(Path(name).read_text(), name, "exec"), namespace)
    finally:
        # Some snippets leave their sandbox to its time-out; a test does not wait for that.
        for value in namespace.values():
            if isinstance(value, e2b_code_interpreter.Sandbox):
                value.kill()


warnings.simplefilter("ignore", ResourceWarning)  # the snippets do not close what they open
sys.path.pop(0)
main()
