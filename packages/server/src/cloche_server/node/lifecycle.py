"""The only table of states and events of a sandbox on its node.

    creating ──started──► running ──end──► ending ──gone──► (forgotten)
      │ ▲ └────end──────────────────────────►┘
      │ └──claimed── ready ──end────────────►┘
      └──made ahead──►┘

    running ──pause──► pausing ──saved──► paused ──resume──► resuming ──started──► running
       ▲◄──not saved──────┘                 ▲◄──not resumed─────┘

A sandbox that is `paused` has an image, and no kernel object. While it is `pausing` or `resuming` it has
both, and the image counts once the record says `paused`. A time-out pauses the same way as a client.

    creating ──opened──► building ──end──► ending

A sandbox that is `building` is one of the node's own, for steps of a template's build: no client's, and no
route leads to it. No restart of the node keeps it.

`ready` is a sandbox that was made before anybody asked for it: it has no token, no route and no network, and
is nobody's. Claiming it is the rest of a create.

Everything that changes a state asks `next_state`; everything else only reads. An end for any reason
(killed, timeout, exited, ...) is the same transition.
"""

from __future__ import annotations

from typing import Literal

from cloche_wire.errors import Conflict

State = Literal["creating", "ready", "running", "building", "pausing", "paused", "resuming", "ending", "gone"]
Event = Literal[
    "started",
    "made_ahead",
    "opened",
    "claimed",
    "pause",
    "saved",
    "not_saved",
    "resume",
    "not_resumed",
    "end",
    "removed",
]

_TABLE: dict[tuple[State, Event], State] = {
    ("creating", "started"): "running",
    ("creating", "made_ahead"): "ready",
    ("creating", "opened"): "building",
    ("creating", "end"): "ending",
    ("building", "end"): "ending",
    ("ready", "claimed"): "creating",
    ("ready", "end"): "ending",
    ("running", "end"): "ending",
    ("running", "pause"): "pausing",
    ("pausing", "saved"): "paused",
    ("pausing", "not_saved"): "running",
    ("paused", "resume"): "resuming",
    ("resuming", "started"): "running",
    ("resuming", "not_resumed"): "paused",
    ("ending", "removed"): "gone",
}


def next_state(state: State, event: Event) -> State:
    """The state after `event`.

    Raises:
        Conflict: The event cannot happen in that state.
    """
    try:
        return _TABLE[state, event]
    except KeyError:
        raise Conflict(f"cannot {event} a sandbox that is {state}") from None
