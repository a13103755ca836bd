"""Start of the kernel: `python3 <this folder> FD`, FD being the socket to the agent.

The folder is imported as the package `python_kernel` and leaves no trace on sys.path: a user's own `shell.py`
or `frames.py` must be importable.
"""

import importlib
import os
import sys

if __name__ == "__main__":
    # A folder given to the interpreter is sys.path[0].
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - start-up time
    boot = importlib.import_module("python_kernel.boot")
    del sys.path[0]
    boot.main(int(sys.argv[1]))
