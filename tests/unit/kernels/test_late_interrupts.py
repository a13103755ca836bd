"""An interrupt that was sent before a run is posted does not hit it, however late the kernel takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cloche_agent.kernels.contexts import Context

if TYPE_CHECKING:
    from tests.unit.kernels.conftest import Interpreter

    from cloche_agent.kernels.kernel import Kernel

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize(
    ("language", "code", "printed"),
    [
        ("python", "print('whole')", "whole\n"),
        ("bash", "echo whole", "whole\n"),
        pytest.param("js", "await null; console.log('whole')", "whole\n", marks=pytest.mark.needs("node")),
        pytest.param("ruby", "puts 'whole'", "whole\n", marks=pytest.mark.needs("ruby")),
    ],
)
async def test_a_signal_from_before_a_run_does_not_hit_it(
    interpreter: Interpreter,
    monkeypatch: pytest.MonkeyPatch,
    language: str,
    code: str,
    printed: str,
    *,
    everything: bool,
) -> None:
    ready = Context.ready

    async def interrupted(context: Context) -> Kernel:
        kernel = await ready(context)
        kernel.interrupt(everything=everything)
        return kernel

    monkeypatch.setattr(Context, "ready", interrupted)
    for _ in range(50):
        execution = await interpreter.run(code, language=language)
        assert execution.error is None, execution.error
        assert "".join(execution.logs.stdout) == printed
