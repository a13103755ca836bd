"""Makes the base of a template of an image: its layers, each unpacked once for a team, and what all have.

A registry is asked for the manifest each time, with the credentials of the one who builds: what is known of
an image from an earlier build is used by those only whom its registry lets have it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, NamedTuple

from cloche_server.templates.build import Base, Kept
from cloche_server.templates.images import manifests, reference
from cloche_server.templates.steps import BASE_STEP, Context, key_of
from cloche_server.templates.workshop import FetchedImage, ImageSource, Setting
from cloche_wire.errors import InvalidArgument, TooLarge, UnsupportedOption

if TYPE_CHECKING:
    from cloche_server.config import Builds
    from cloche_server.templates.build import Memory, Target
    from cloche_server.templates.images.manifests import Image
    from cloche_server.templates.images.reference import Reference
    from cloche_server.templates.step_run import Log
    from cloche_server.templates.steps import Description, Registry
    from cloche_server.templates.workshop import Workshop

NOTHING = "scratch"
"""What Dockerfiles call an image without files."""
_FORMAT = "1"
"""Goes into every key: raise it when the same image would become other layers."""
_OWN_LAYERS = 40
"""So many are made of an image at most, so that a root has room for steps."""
_SMALL_BYTES = 4 << 20
"""Layers of an image share one of ours until they are that large together: each costs a sandbox."""
_NO_BASH = ("/bin/sh", "-l", "-c")


class _Found(NamedTuple):
    """An image for this machine."""

    source: ImageSource
    pinned: str
    """Its place and digest."""
    digest: str
    image: Image
    """As the registry has it."""

    def group(self, count: int, room: int) -> int:
        """Up to where the layers from `count` on share one of ours.

        The same for all images that begin with the same layers, so that they share what is large.

        Args:
            count: How many are unpacked.
            room: How many of ours there may still be.
        """
        size = 0
        if room > 1:
            for number in range(count, len(self.image.layers)):
                size += self.image.sizes_bytes[number]
                if size >= _SMALL_BYTES:
                    return number + 1
        return len(self.image.layers)


class _Unpacked(NamedTuple):
    layers: tuple[str, ...]
    """Of ours, uppermost first."""
    key: str
    env: dict[str, str]


class ImageBases:
    """For one build."""

    def __init__(
        self, settings: Builds, target: Target, workshop: Workshop, memory: Memory, log: Log
    ) -> None:
        """Work with these parts."""
        self._settings = settings
        self._target = target
        self._workshop = workshop
        self._memory = memory
        self._log = log

    async def of_image(self, description: Description) -> Base:
        """See `templates.build.Bases.of_image`.

        Raises:
            ClocheError: As `node.pulling.messages` lists them, or no name of an image.
        """
        if description.from_image == NOTHING:
            return await self._of_nothing(description)
        asked = reference.parse(description.from_image)
        reference.check_allowed(asked, self._settings.registries)
        source = ImageSource(asked.kind, asked.name, *_credentials(description.from_image_registry))
        async with AsyncExitStack() as stack:
            fetched = None
            if asked.kind == "docker":
                found = await self._find(asked, source)
            else:
                # It is here already, and its parts have no names before it is read.
                fetched = await stack.enter_async_context(self._workshop.image(source, (), self._max_bytes))
                digest = manifests.digest_of(fetched.manifest)
                found = _Found(source, asked.at(digest), digest, manifests.image(fetched.manifest))
            await self._log.write(f"image {found.pinned}", BASE_STEP)
            unpacked = await self._unpack(found, fetched, description.isolation)
        layers, shell = await self._prepare(unpacked, description)
        context = Context(env=unpacked.env, shell=shell)
        return Base(key_of("image", _FORMAT, found.digest), layers, context, image=found.pinned)

    async def empty(self) -> Base:
        """What everything lies on that brings all its files along."""
        root = await self._workshop.image_root()
        return Base(key_of("empty", _FORMAT, root), (root,), Context())

    async def _of_nothing(self, description: Description) -> Base:
        root = await self._workshop.image_root()
        key = key_of("image layers", _FORMAT, root)
        layers, shell = await self._prepare(_Unpacked((root,), key, {}), description)
        return Base(key, layers, Context(shell=shell))

    @property
    def _max_bytes(self) -> int:
        return self._settings.max_image_mib << 20

    async def _find(self, asked: Reference, source: ImageSource) -> _Found:
        """Ask the registry which image is meant."""
        text = await self._workshop.read_image(source)
        digest = asked.digest or manifests.digest_of(text)
        manifests.check_digest(text, digest)
        chosen = manifests.choice(text)
        if chosen is not None:
            digest = chosen
            text = await self._workshop.read_image(source._replace(name=asked.at(digest)))
            manifests.check_digest(text, digest)
        image = manifests.image(text)
        size_bytes = sum(image.sizes_bytes)
        if size_bytes > self._max_bytes:
            raise TooLarge(
                f"the image is {size_bytes >> 20} MiB, of at most {self._settings.max_image_mib}",
                hint="the operator may raise builds.max_image_mib",
            )
        return _Found(source._replace(name=asked.at(digest)), asked.at(digest), digest, image)

    # --- layers --------------------

    async def _unpack(self, found: _Found, fetched: FetchedImage | None, isolation: str) -> _Unpacked:
        root = await self._workshop.image_root()
        keys = [key_of("image layers", _FORMAT, root)]
        for digest in found.image.layers:
            keys.append(key_of(keys[-1], digest))
        layers, count = await self._known((root,), keys)
        about = await self._memory.find(key_of("image config", _FORMAT, found.digest))
        if about is not None and count == len(found.image.layers):
            await self._log.write(f"CACHED all {count} layers", BASE_STEP)
            return _Unpacked(layers, keys[-1], about.context.env)
        if fetched is not None:
            return await self._apply(found, fetched, keys, layers, count, isolation)
        # The same digest may stand in an image more than once: it is needed for its second place.
        known = tuple(set(found.image.layers[:count]) - set(found.image.layers[count:]))
        async with self._workshop.image(found.source, known, self._max_bytes) as image:
            return await self._apply(found, image, keys, layers, count, isolation)

    async def _known(self, root: tuple[str, ...], keys: list[str]) -> tuple[tuple[str, ...], int]:
        """How many of the lowest layers an earlier build has left, and as what."""
        for count in range(len(keys) - 1, 0, -1):
            if (kept := await self._memory.find(keys[count])) is not None:
                return kept.layers, count
        return root, 0

    async def _apply(
        self,
        found: _Found,
        image: FetchedImage,
        keys: list[str],
        layers: tuple[str, ...],
        count: int,
        isolation: str,
    ) -> _Unpacked:
        """Unpack the layers from that count on."""
        env = manifests.variables(image.config)
        # Those of the layout, which are packed anew where we could not unpack them.
        digests, named = manifests.image(image.manifest).layers, found.image.layers
        if len(digests) != len(named):
            raise InvalidArgument(f"the image has {len(digests)} layers, and its manifest {len(named)}")
        while count < len(digests):
            upto = found.group(count, _OWN_LAYERS - len(layers) + 1)
            async with self._workshop.bench(self._setting(layers, isolation)) as bench:
                for number in range(count, upto):
                    title = f"[{number + 1}/{len(digests)}] layer {named[number]}"
                    await self._log.write(title, BASE_STEP)
                    await bench.apply_layer(image, digests[number])
                layer = await bench.commit()
            layers = (layer.layer_id, *layers) if layer.entries else layers
            count = upto
            await self._memory.keep(keys[count], Kept(layers, Context()))
        await self._memory.keep(key_of("image config", _FORMAT, found.digest), Kept(layers, Context(env=env)))
        return _Unpacked(layers, keys[-1], env)

    # --- what all templates have --------------------

    async def _prepare(
        self, unpacked: _Unpacked, description: Description
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Add it, unless an earlier build has; the layers, and what commands are run by."""
        key = key_of("image prepared", _FORMAT, unpacked.key)
        kept = None if description.force else await self._memory.find(key)
        if kept is not None:
            return kept.layers, kept.context.shell

        async def on_line(_stream: str, line: str) -> None:
            await self._log.write(line, BASE_STEP)

        async with self._workshop.bench(self._setting(unpacked.layers, description.isolation)) as bench:
            prepared = await bench.prepare_base(on_line)
            layer = await bench.commit()
        layers = (layer.layer_id, *unpacked.layers) if layer.entries else unpacked.layers
        shell = Context().shell if prepared.shell == "/bin/bash" else _NO_BASH
        if not prepared.shell:
            await self._log.write("The image has no shell: steps and commands need one", BASE_STEP, "warn")
        if prepared.is_complete:  # else the next build tries again
            await self._memory.keep(key, Kept(layers, Context(shell=shell)))
        return layers, shell

    def _setting(self, layers: tuple[str, ...], isolation: str) -> Setting:
        target = self._target
        size = target.cpu_count, target.memory_mib
        return Setting(target.build_id, target.team_id, layers, *size, isolation)


def _credentials(registry: Registry | None) -> tuple[str, str]:
    """Name and password for a registry.

    Raises:
        UnsupportedOption: They have to be exchanged for others first, which is not done here.
        InvalidArgument: There are none in it.
    """
    if registry is None:
        return "", ""
    match registry.type:
        case "registry":
            name, password = registry.username, registry.password
        case "gcp":
            name, password = "_json_key", registry.service_account_json
        case "aws":
            raise UnsupportedOption(
                "keys of AWS are not exchanged for a password of its registry here",
                hint="pass the user AWS and what `aws ecr get-login-password` prints as its password",
            )
        case other:
            raise InvalidArgument(f"no such type of registry: {other[:40]!r}")
    if not name or not password:
        raise InvalidArgument(f"the credentials of the registry ({registry.type}) are not whole")
    return name, password
