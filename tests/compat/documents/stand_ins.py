"""What the document leaves to its reader, by the number of the snippet: files, values, hosts of the internet.

Nothing here changes a snippet. A name it uses and does not define is defined before it; a file it expects is
put in its place, on this side or in the sandbox; a host it calls is played by a server inside the sandbox.
"""

from typing import NamedTuple


class Host(NamedTuple):
    """A host of the internet, played inside the sandbox."""

    name: str
    content_type: str
    body: str


class StandIn(NamedTuple):
    """What one snippet needs, and what must come of it."""

    prelude: str = ""
    local_files: tuple[tuple[str, bytes], ...] = ()
    sandbox_files: tuple[tuple[str, str], ...] = ()
    host: Host | None = None
    prints: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    """Local files the snippet writes; a .png has to be one."""
    needs: tuple[str, ...] = ()
    server: str = "server"
    """Fixture of the server that it speaks to."""


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
QUOTES = '<div class="quote"><span class="text">To be</span><small class="author">W. S.</small></div>'
SALES = "quarter,units,price,cost\n1,100,9.5,4\n2,150,9.0,4\n3,200,8.5,3\n4,175,9.0,4\n"

SKIPPED = {
    10: "calls a language model's provider",
    11: "calls a language model's provider",
    23: "calls a language model's provider",
}

STAND_INS: dict[int, StandIn] = {
    1: StandIn(prints=("Hello, E2B!", "name='etc'")),
    2: StandIn(prints=("Data shape: (2, 3)", "Plot saved to /tmp/plot.png"), leaves=("plot.png",)),
    4: StandIn(prelude="sandbox = Sandbox()", prints=("Sandbox ID: i", "Started at: 20", "Ends at: 20")),
    5: StandIn(
        prelude="sandbox = Sandbox()", prints=("Sandbox paused: i",), needs=("runsc",), server="gvisor_server"
    ),
    6: StandIn(
        host=Host("api.github.com", "application/json", '{"name": "E2B"}'),
        needs=("internet",),
    ),
    8: StandIn(
        local_files=(("local_image.png", PNG),),
        sandbox_files=(("/tmp/result.csv", "a,b\n1,2\n"),),
        prints=("Hello, World!", "hello.txt: ", "image.png: "),
        leaves=("local_result.csv",),
    ),
    9: StandIn(prints=("Server running at: https://8000-", "Directory listing for /")),
    12: StandIn(prelude=f"sales_data = {SALES!r}", leaves=("analysis.png",)),
    13: StandIn(prints=("fib(9) = 34",)),
    14: StandIn(
        host=Host("quotes.toscrape.com", "text/html", QUOTES),
        prints=("text,author", "To be,W. S."),
        needs=("internet",),
    ),
    16: StandIn(prints=("Error type: ZeroDivisionError", "Error message: division by zero")),
    17: StandIn(
        sandbox_files=(("/home/user/long_script.py", "import time; time.sleep(600)"),),
        prints=("Process still running...",),
    ),
    18: StandIn(sandbox_files=(("/tmp/script.sh", "#!/bin/sh\n"),), prints=("value",)),
    19: StandIn(prints=("Running locally",)),
    21: StandIn(prints=("API Key: temporary-key-456",)),
    22: StandIn(prints=("Database: sqlite:///temp.db, Environment: development",)),
    25: StandIn(prelude="def generate_session_id(): return 's-1'"),
    26: StandIn(prints=("E2B_SANDBOX=true", "E2B_SANDBOX is set to: true")),
    27: StandIn(host=Host("google.com", "text/html", "ok"), prints=("Linux", "Mem:", "200 OK")),
}
"""A snippet that is in neither table needs nothing and only has to run."""
