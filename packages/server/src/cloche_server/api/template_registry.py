"""Which templates there are, and which one a name means.

Of those of everyone the finished builds on disk are the truth; the store holds what was found there, for
queries. They are read at start, and again when a name is not found and the folder may have changed. Those
that teams build are rows from their first request on.
"""

from collections.abc import Sequence
from datetime import UTC
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from cloche_server.api import template_names
from cloche_server.api.auth import Caller
from cloche_server.clock import Clock
from cloche_server.ids import BuildId, TemplateId
from cloche_server.store.builds import DEFAULT_TAG
from cloche_server.store.schema import EVERYONE
from cloche_server.store.template_tags import TemplateTags
from cloche_server.store.templates import Template, Templates
from cloche_server.templates import manifest, recipe
from cloche_wire.errors import ClocheError, TemplateNotFound

RESCAN_AFTER_S = 1.0
"""A folder that looks unchanged is read again on a miss after this time at the earliest."""

log = structlog.get_logger()


class TemplateRegistry:
    """Names to templates, for one team at a time."""

    def __init__(self, templates: Templates, tags: TemplateTags, folder: Path, clock: Clock) -> None:
        """Nothing is read yet."""
        self._templates = templates
        self._tags = tags
        self._folder = folder
        self._clock = clock
        self._scanned: tuple[int, float] | None = None
        self._lock = anyio.Lock()

    async def resolve(self, caller: Caller, reference: str) -> Template:
        """Return the template that an id, a name or an alias means, maybe with `namespace/` or `:tag`.

        Its build is the one that the tag leads to.

        Raises:
            TemplateNotFound: The caller may use no such template, nothing of it is built, or it is one of
                ours that nobody has built here; the hint says how to.
        """
        template = await self.known(caller, reference)
        tag = template_names.parse(reference).tag or DEFAULT_TAG
        if tag == DEFAULT_TAG and template.build_id:
            return template
        build = await self._tags.build_of(template.id, tag)
        if build is None:
            raise TemplateNotFound(f"template '{reference[:128]}' not found: no build has the tag '{tag}'")
        size = {"cpu_count": build.cpu_count, "memory_mib": build.memory_mib}
        return msgspec.structs.replace(template, build_id=build.id, isolation=build.isolation, **size)

    async def known(self, caller: Caller, reference: str) -> Template:
        """Return the template that an id or a name means, whatever its tag, and also before its first build.

        Raises:
            TemplateNotFound: The caller may use no such template.
        """
        before = self._scanned
        found = await self._find(caller, reference)
        # Where others have scanned meanwhile, it was looked for in what was known before.
        if found is None and (self._scanned is not before or self._may_have_changed()):
            await self.scan()
            found = await self._find(caller, reference)
        if found is None:
            raise _not_found(caller, reference)
        return found

    async def _find(self, caller: Caller, reference: str) -> Template | None:
        asked = template_names.parse(reference)
        if not asked.name:
            return None
        if asked.namespace in ("", caller.team_name.lower()):
            return await self._templates.find(caller.team_id, asked.name)
        return await self._templates.find_in_namespace(asked.namespace, asked.name)

    async def scan(self) -> None:
        """Read all finished builds and make them the templates of everyone."""
        async with self._lock:
            stamp = (_changed_ns(self._folder), self._clock.boot_s())
            found = await anyio.to_thread.run_sync(partial(_read_folder, self._folder))
            await self._templates.replace_shared(found)
            self._scanned = stamp
        log.info("api.templates_scanned", templates=[template.name for template in found])

    def _may_have_changed(self) -> bool:
        if self._scanned is None:
            return True
        changed_ns, at_s = self._scanned
        return _changed_ns(self._folder) != changed_ns or self._clock.boot_s() - at_s >= RESCAN_AFTER_S


def split_reference(caller: Caller, reference: str) -> tuple[str, str] | None:
    """Return name and tag of `[namespace/]name[:tag]`; None when it can mean nothing of the caller's."""
    found = template_names.parse(reference)
    if not found.name or found.namespace not in ("", caller.team_name.lower()):
        return None
    return found.name, found.tag or DEFAULT_TAG


def _not_found(caller: Caller, reference: str) -> TemplateNotFound:
    named = split_reference(caller, reference)
    for known in recipe.embedded():
        # Not built here and now: it takes minutes and gigabytes, and anybody with a key can ask for it.
        if named and named[0] in (known.template_id, known.name, *known.aliases):
            command = f"cloche template build {known.name}"
            return TemplateNotFound(
                f"template '{known.name}' is not built on this server", hint=f"build it with `{command}`"
            )
    return TemplateNotFound(f"template '{reference[:128]}' not found")


def _changed_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _read_folder(folder: Path) -> Sequence[Template]:
    """The newest build of each template; what cannot be read is logged and left out."""
    newest: dict[str, manifest.Manifest] = {}
    for path in sorted(folder.glob(f"[!.]*/{manifest.MANIFEST_NAME}")):
        try:
            found = manifest.read(path)
        except (OSError, ClocheError) as error:
            log.warning("api.template_skipped", path=str(path), error=str(error))
            continue
        if found.team_id:
            continue  # a team's own: the store knows it
        known = newest.get(found.template_id)
        if known is None or known.created_at < found.created_at:
            newest[found.template_id] = found
    return [_template(found) for found in newest.values()]


def _template(found: manifest.Manifest) -> Template:
    return Template(
        TemplateId(found.template_id),
        EVERYONE,
        BuildId(found.build_id),
        found.name,
        list(dict.fromkeys([found.name, *found.aliases])),
        found.cpu_count,
        found.memory_mib,
        # No quota is set on a sandbox's disk yet: 0 says so.
        disk_mib=0,
        created_at=found.created_at.astimezone(UTC),
        isolation=found.isolation,
        is_public=True,
    )
