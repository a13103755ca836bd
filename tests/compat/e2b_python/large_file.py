"""Moves one large file through the unmodified official client: `large_file.py SANDBOX_ID STEP BYTES`.

Run by test_large_files.py under the interpreter that has that client, one step per process.
"""

import sys
import tempfile
import time

from e2b import NotEnoughSpaceException, Sandbox

PATH = "/home/user/large"
REQUEST_S = 900


def main() -> None:
    """Do one step; whatever goes wrong is an exit code other than 0."""
    sandbox_id, step, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sandbox = Sandbox.connect(sandbox_id)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        begun = time.monotonic()
        match step:
            case "up":
                sandbox.files.write(PATH, file, request_timeout=REQUEST_S)
            case "up_packed":
                sandbox.files.write(PATH, file, gzip=True, request_timeout=REQUEST_S)
            case "up_form":
                sandbox.files.write(PATH, file, use_octet_stream=False, request_timeout=REQUEST_S)
            case "down":
                pieces = sandbox.files.read(PATH, format="stream", request_timeout=REQUEST_S)
                assert sum(len(piece) for piece in pieces) == size
            case "down_packed":
                pieces = sandbox.files.read(PATH, format="stream", gzip=True, request_timeout=REQUEST_S)
                assert sum(len(piece) for piece in pieces) == size
            case "too_large":
                _is_refused(sandbox, file)
            case _:
                raise SystemExit(f"no such step: {step}")
    print(f"{step}: {size / 1e6 / (time.monotonic() - begun):.0f} MB/s")


def _is_refused(sandbox: Sandbox, file: object) -> None:
    """More than fits on /dev/shm: the client's own error, and the space is there again at once."""
    try:
        sandbox.files.write("/dev/shm/large", file, request_timeout=REQUEST_S)
    except NotEnoughSpaceException:
        assert not sandbox.files.exists("/dev/shm/large")
        sandbox.files.write("/dev/shm/small", "fits")
        assert sandbox.files.read("/dev/shm/small") == "fits"
    else:
        raise SystemExit("the file fitted")


if __name__ == "__main__":
    main()
