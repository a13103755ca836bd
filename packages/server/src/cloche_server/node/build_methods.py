"""Answers of the control socket about builds of templates; see `build_messages`."""

from __future__ import annotations

import msgspec

from cloche_server import link
from cloche_server.node import build_messages as messages
from cloche_server.node import (
    builds,
    changing,
    imported_layers,
    kill,
    pruning,
    publishing,
    squashing,
)
from cloche_server.node.machine import Machine


def of(machine: Machine) -> dict[str, link.Method]:
    """The methods by name."""

    async def open_build(params: msgspec.Raw) -> link.Answer:
        request = link.decode(params, messages.OpenBuild)
        opened = await builds.open_build(machine, request)

        async def end() -> None:
            await kill.end_in_turn(machine, opened.sandbox_id, "killed")

        events = builds.until_ended(machine, opened.sandbox_id, builds.life_s(machine, request))
        return link.Answer(opened, events=events, at_end=end)

    async def run(params: msgspec.Raw) -> link.Answer:
        request = link.decode(params, messages.RunInBuild)
        live = builds.find(machine, request.sandbox_id)
        return link.Answer({}, events=builds.run(machine, live, request))

    async def put(params: msgspec.Raw) -> link.Answer:
        request = link.decode(params, messages.PutInBuild)
        await builds.put(machine, builds.find(machine, request.sandbox_id), request)
        return link.Answer({})

    async def apply(params: msgspec.Raw) -> link.Answer:
        await imported_layers.apply(machine, link.decode(params, messages.ApplyUpload))
        return link.Answer({})

    async def change(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await changing.change(machine, link.decode(params, messages.ChangeRoot)))

    async def commit(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await builds.commit(machine, link.decode(params, messages.CommitBuild)))

    async def publish(params: msgspec.Raw) -> link.Answer:
        return link.Answer({}, events=publishing.publish(machine, link.decode(params, messages.PublishBuild)))

    async def unpublish(params: msgspec.Raw) -> link.Answer:
        await publishing.unpublish(machine, link.decode(params, messages.RemoveBuild))
        return link.Answer({})

    return {
        "build_open": open_build,
        "build_run": run,
        "build_put": put,
        "build_apply": apply,
        "build_change": change,
        "build_commit": commit,
        "publish": publish,
        "unpublish": unpublish,
        **_of_layers(machine),
    }


def _of_layers(machine: Machine) -> dict[str, link.Method]:
    async def list_layers(_: msgspec.Raw) -> link.Answer:
        return link.Answer([builds.shown(layer) for layer in machine.layers.all()])

    async def prune(params: msgspec.Raw) -> link.Answer:
        return link.Answer(pruning.prune(machine, link.decode(params, messages.PruneLayers)))

    async def squash(params: msgspec.Raw) -> link.Answer:
        return link.Answer(await squashing.squash_layers(machine, link.decode(params, messages.SquashLayers)))

    return {"layers": list_layers, "prune_layers": prune, "squash": squash}
