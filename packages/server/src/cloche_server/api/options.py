"""What a create may ask for. What cannot be honoured is refused by name, never ignored."""

from typing import Any, NamedTuple

import msgspec

from cloche_server.api.network_options import NetworkOptions, check_network
from cloche_server.api.shapes import IdleConfig, Lifecycle, NewSandbox
from cloche_server.config import Config, Idle, Limits
from cloche_wire.errors import InvalidArgument, UnsupportedOption

MAX_OPTIONS_BYTES = 1 << 20


LONGEST_IDLE_S = 7 * 86_400


class Options(NamedTuple):
    """The checked options of one create."""

    timeout_s: int
    lifecycle: Lifecycle
    pause_memory: bool
    """Whether memory is kept by the pause at its time-out."""
    network: NetworkOptions

    @property
    def stored_lifecycle(self) -> dict[str, Any]:
        """What is shown, and how its time-out pauses it."""
        return msgspec.to_builtins(self.lifecycle) | {
            "pauseMode": "full" if self.pause_memory else "filesystem"
        }


def check_options(body: NewSandbox, config: Config, *, default_timeout_s: int) -> Options:
    """Return what the create asks for.

    Raises:
        InvalidArgument: A value that can never be right.
        UnsupportedOption: An option that this server does not honour; the message names it.
    """
    timeout_s = default_timeout_s if body.timeout is msgspec.UNSET else body.timeout
    check_timeout(timeout_s, config.limits)
    _check_texts(body)
    _check_iam(body.iam)
    idle = _check_idle(body.idle, config.idle)
    return Options(
        timeout_s,
        lifecycle=msgspec.structs.replace(_check_lifecycle(body), idle=idle),
        pause_memory=body.auto_pause_memory,
        network=check_network(body, config.egress.exceptions),
    )


def check_timeout(timeout_s: int, limits: Limits, *, may_be_over: bool = False) -> None:
    """Refuse a life that is no life, unless it may be over at once, or too long.

    Raises:
        InvalidArgument: Out of range.
    """
    if timeout_s < 0 or (timeout_s == 0 and not may_be_over):
        raise InvalidArgument("Timeout must be greater than 0 seconds")
    if timeout_s > limits.max_timeout_s:
        hours, rest = divmod(limits.max_timeout_s, 3600)
        longest = f"{limits.max_timeout_s} seconds" if rest else f"{hours} hours"
        raise InvalidArgument(f"Timeout cannot be greater than {longest}")


def _check_lifecycle(body: NewSandbox) -> Lifecycle:
    if not body.auto_pause_memory and not body.auto_pause:
        raise InvalidArgument("autoPauseMemory false needs autoPause")
    if not body.auto_pause_memory and body.auto_resume.enabled:
        raise InvalidArgument("autoPauseMemory false cannot be combined with autoResume")
    # Whether the isolation in use can pause is the node's to say.
    return Lifecycle(body.auto_resume.enabled, "pause" if body.auto_pause else "kill")


def _check_idle(wish: IdleConfig | None, usual: Idle) -> IdleConfig | msgspec.UnsetType:
    """What becomes of it when nothing happens in it; whether its isolation can, is the node's to say."""
    chosen = IdleConfig(usual.after_s, usual.act) if wish is None else wish
    if not 0 <= chosen.after_seconds <= LONGEST_IDLE_S:
        raise InvalidArgument(f"idle.afterSeconds is not between 0 and {LONGEST_IDLE_S}")
    return chosen if chosen.after_seconds else msgspec.UNSET


def _check_iam(iam: dict[str, Any] | None) -> None:
    if iam and any(iam.values()):
        raise UnsupportedOption(
            "iam is not supported by this server: it issues no identity tokens",
            hint="leave out iam; hand credentials over in envVars",
        )


def _check_texts(body: NewSandbox) -> None:
    texts = [*body.metadata.items(), *body.env_vars.items()]
    if sum(len(name.encode()) + len(value.encode()) for name, value in texts) > MAX_OPTIONS_BYTES:
        raise InvalidArgument(f"metadata and envVars are larger than {MAX_OPTIONS_BYTES} bytes together")
    for name, value in body.env_vars.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidArgument(f"bad name in envVars: {name[:80]!r}", hint="no '=', no NUL, not empty")
        if "\0" in value:
            raise InvalidArgument(f"value in envVars holds a NUL: {name[:80]!r}")
