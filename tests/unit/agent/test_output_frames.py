"""The frames of output, which are written without the codec."""

from __future__ import annotations

import pytest

from cloche_agent.process import running
from cloche_wire import connect, proto_json
from cloche_wire.messages.process import DataEvent, ProcessEvent, StartResponse


@pytest.mark.parametrize("piece", [b"x", b"\0\xff", b"abc" * 1000, bytes(range(256)) * 128])
def test_output_frames_are_what_the_codec_writes(piece: bytes) -> None:
    makers = {"stdout": running.stdout_frame, "stderr": running.stderr_frame, "pty": running.terminal_frame}
    for kind, make in makers.items():
        message = StartResponse(event=ProcessEvent(data=DataEvent(**{kind: piece})))
        assert make(piece) == connect.encode_envelope(0, proto_json.encode(message))
