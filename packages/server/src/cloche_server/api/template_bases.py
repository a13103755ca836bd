"""What builds start from: templates that a team may use, and images that stand for one."""

from fnmatch import fnmatchcase
from functools import partial

import anyio.to_thread
import msgspec

from cloche_server.api.auth import Caller
from cloche_server.api.template_registry import TemplateRegistry
from cloche_server.config import Config
from cloche_server.templates import manifest, recipe, steps
from cloche_server.templates.build import Base
from cloche_server.templates.images.bases import ImageBases
from cloche_server.templates.steps import Context, Description
from cloche_wire.errors import TemplateNotFound

OUR_IMAGES = {
    "e2bdev/base": recipe.NAME,
    "e2bdev/code-interpreter": recipe.NAME,
}
"""The vendor's images, whatever their tag, and what of ours has what they have."""

_INTERPRETER_STARTS = frozenset({"/root/.jupyter/start-up.sh", "sudo /root/.jupyter/start-up.sh"})
"""What starts the code interpreter in the vendor's image, by the vendor's documents. Ours is the agent's."""


class TemplateBases:
    """See `templates.build.Bases`; for one team."""

    def __init__(
        self, config: Config, registry: TemplateRegistry, caller: Caller, images: ImageBases
    ) -> None:
        """Look them up for this caller; what no template stands for is one of the images."""
        self._config = config
        self._registry = registry
        self._caller = caller
        self._images = images

    async def of_template(self, reference: str) -> Base:
        """See `Bases.of_template`."""
        template = await self._registry.resolve(self._caller, reference)
        path = self._config.templates_dir / template.build_id / manifest.MANIFEST_NAME
        try:
            found = await anyio.to_thread.run_sync(partial(manifest.read, path))
        except FileNotFoundError as error:
            raise TemplateNotFound(f"template '{reference[:128]}' is gone from disk") from error
        context = Context(found.default_user, found.default_workdir, found.env)
        return Base(
            f"build:{found.build_id}",
            found.layer_names,
            context,
            found.start_cmd,
            found.ready_cmd,
            isolation=found.isolation,
            image=found.image,
            warm=found.warm,
        )

    async def of_image(self, description: Description) -> Base:
        """See `Bases.of_image`."""
        name = description.from_image
        if name == steps.LAYERS_ALONE:
            return await self._images.empty()
        stand_in = self._stand_in(name)
        if stand_in is None:
            return await self._images.of_image(description)
        base = await self.of_template(stand_in)
        # An image says no working directory here, so commands start at home; and nothing of it runs.
        context = msgspec.structs.replace(base.context, workdir="")
        needless = _INTERPRETER_STARTS if stand_in == recipe.NAME else frozenset[str]()
        return base._replace(context=context, start_cmd="", ready_cmd="", needless=needless)

    def _stand_in(self, image: str) -> str | None:
        plain = image.removeprefix("docker.io/")
        bare = plain.partition("@")[0]
        for pattern, template in self._config.builds.images.items():
            if fnmatchcase(plain, pattern) or fnmatchcase(bare, pattern):
                return template
        head, _, last = bare.rpartition("/")
        return OUR_IMAGES.get(f"{head}/{last.partition(':')[0]}" if head else last.partition(":")[0])
