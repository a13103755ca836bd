"""Run by an older official Python client: what every one of them can do, printed as one line of JSON."""

import json

from e2b import Sandbox

PATH = "/home/user/kept.txt"


def main() -> None:
    """Create, run, write, read, reach it again, list, kill."""
    create = getattr(Sandbox, "create", Sandbox)  # 1.x made one by its constructor
    sandbox = create(timeout=60, envs={"GIVEN": "yes"})
    try:
        told = {"echo": sandbox.commands.run("echo $GIVEN; whoami").stdout}
        sandbox.files.write(PATH, "kept")
        again = Sandbox.connect(sandbox.sandbox_id)
        told["file"] = again.files.read(PATH)
        told["cat"] = again.commands.run(f"cat {PATH}").stdout
        told["listed"] = "kept.txt" in [entry.name for entry in again.files.list("/home/user")]
        found = Sandbox.list()
        items = found if isinstance(found, list) else found.next_items()
        told["found"] = sandbox.sandbox_id in [item.sandbox_id for item in items]
    finally:
        sandbox.kill()
    told["running"] = sandbox.is_running()
    print(json.dumps(told))


main()
