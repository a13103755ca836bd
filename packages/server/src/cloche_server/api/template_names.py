"""Names of templates as clients write them: `[namespace/]name[:tag]`."""

import re
import uuid
from collections.abc import Iterable
from typing import NamedTuple

from cloche_server.api.auth import Caller
from cloche_server.store.builds import DEFAULT_TAG
from cloche_wire.errors import InvalidArgument

MAX_NAME_LENGTH = 128
_NAME = re.compile(r"[a-z0-9_-]{1,128}\Z")
_TAG = re.compile(r"[a-z0-9_.-]{1,128}\Z")


class Name(NamedTuple):
    """A name, taken apart."""

    namespace: str
    """Empty: the caller's own, or that of the templates which come with the server."""
    name: str
    tag: str
    """Empty where none was given."""


def parse(reference: str) -> Name:
    """Take a reference apart, which may be an id too; nothing is checked."""
    path, _, tag = reference.strip().lower().partition(":")
    namespace, _, name = path.rpartition("/")
    return Name(namespace, name, tag)


def checked_name(caller: Caller, wished: str) -> Name:
    """Return a name that the caller may give to a template of the team.

    Raises:
        InvalidArgument: It may not be one, or lies in the namespace of another team.
    """
    found = parse(wished)
    if len(wished) > MAX_NAME_LENGTH or not _NAME.match(found.name) or (":" in wished and not found.tag):
        raise InvalidArgument(
            f"bad name of a template: {wished[:80]!r}", hint="[namespace/]name[:tag] of [a-z0-9_-], up to 128"
        )
    if found.namespace and found.namespace != caller.team_name.lower():
        raise InvalidArgument(
            f"not your team's namespace: {found.namespace[:80]!r}", hint=f"yours is {caller.team_name!r}"
        )
    return found


def checked_tags(tags: Iterable[str]) -> list[str]:
    """Return tags as they are stored, each once.

    Raises:
        InvalidArgument: One may not be a tag: it is a UUID, as builds have them, or has other letters.
    """
    found = list(dict.fromkeys(tag.strip().lower() for tag in tags))
    for tag in found:
        if not _TAG.match(tag) or _is_uuid(tag):
            raise InvalidArgument(f"bad tag: {tag[:80]!r}", hint="of [a-z0-9_.-], and no UUID")
    return found


def tags_of_build(name: Name, more: Iterable[str]) -> list[str]:
    """Return the tags that lead to a new build: that of its name, and more; else the default one.

    Raises:
        InvalidArgument: One may not be a tag.
    """
    return checked_tags([*([name.tag] if name.tag else []), *more]) or [DEFAULT_TAG]


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
