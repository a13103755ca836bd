"""Start of the kernel: `python3 <this folder> BACKEND [ARGUMENT] FD`, FD being the socket to the agent."""

import importlib
import os
import sys

if __name__ == "__main__":
    # Imported as part of the folder that holds all kernel programs, for `python_kernel.frames` is used too.
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - start-up time
    kernels = os.path.dirname(here)  # noqa: PTH120
    sys.path[0] = os.path.dirname(kernels)  # noqa: PTH120
    driver = importlib.import_module(f"{os.path.basename(kernels)}.driven_kernel.driver")  # noqa: PTH119
    del sys.path[0]
    driver.main(sys.argv[1:-1], int(sys.argv[-1]))
