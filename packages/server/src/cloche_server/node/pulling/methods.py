"""Answers of the control socket about images of registries; see `messages`."""

from __future__ import annotations

import msgspec

from cloche_server import link
from cloche_server.node import changing, threads
from cloche_server.node.machine import Machine
from cloche_server.node.pulling import messages, pulls, unpacking


def of(machine: Machine) -> dict[str, link.Method]:
    """The methods by name."""

    async def read(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await pulls.read(machine, link.decode(params, messages.ReadImage)))

    async def fetch(params: msgspec.Raw) -> link.Answer:
        return link.Answer({}, events=pulls.fetch(machine, link.decode(params, messages.FetchImage)))

    async def root(_: msgspec.Raw) -> link.Answer:
        async with machine.turns.of("image_root"):
            return link.Answer(await threads.in_thread(unpacking.root, machine))

    async def apply(params: msgspec.Raw) -> link.Answer:
        await unpacking.apply(machine, link.decode(params, messages.ApplyLayer))
        return link.Answer({})

    async def prepare(params: msgspec.Raw) -> link.Answer:
        return link.Answer({}, events=changing.prepare(machine, link.decode(params, messages.PrepareBase)))

    return {
        "image_read": read,
        "image_fetch": fetch,
        "image_root": root,
        "image_apply": apply,
        "image_prepare": prepare,
    }
