"""What `cloche bench` measures of building templates: `cloche template build` of a folder."""

import json
import os
from secrets import token_hex

from costs import Act, Costs
from projects import builds, run

COMMAND = json.loads(os.environ.get("CLOCHE_COMMAND", "[]"))
"""How our own command is called for the server that is measured."""


def template_build() -> Costs:
    """The whole command, from its start to its end, as for buildah's."""
    name = f"bench-{token_hex(4)}"
    template = [*COMMAND, "template"]
    state = ["--state", os.environ["CLOCHE_STATE_DIR"]]
    return builds(
        lambda folder: run([*template, "build", str(folder), "--name", name, *state]),
        lambda: run([*template, "delete", "--yes", name, *state]),
    )


ACTS: dict[str, Act] = {"template_build": template_build}
