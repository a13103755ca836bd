"""Which bytes of a file a GET asks for, and whether it wants them at all: RFC 9110, sections 8, 13 and 14."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from cloche_wire.errors import InvalidArgument

if TYPE_CHECKING:
    import os

    from cloche_agent.http import Headers

_RANGE = re.compile(r"\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")
_MOST_RANGES = 64
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT")
_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


class Span(NamedTuple):
    """Bytes `start` to `end`, `end` not included."""

    start: int
    end: int


class RangeNotSatisfiable(InvalidArgument):
    """The range begins behind the end of the file."""

    http_status = 416


class NotAcceptable(InvalidArgument):
    """The client accepts none of the encodings that the file can be sent in."""

    http_status = 406


def etag(found: os.stat_result) -> str:
    """Tag that changes when the file is written to."""
    return f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'


def http_date(found: os.stat_result) -> str:
    """Last-Modified of the file."""
    at = time.gmtime(max(0, int(found.st_mtime)))
    clock = f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
    return f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04d} {clock} GMT"


def is_unchanged(headers: Headers, found: os.stat_result) -> bool:
    """Whether the client has this very content already (If-None-Match, If-Modified-Since)."""
    tags = headers.get("if-none-match")
    if tags is not None:
        return tags.strip() == "*" or etag(found) in (
            tag.strip().removeprefix("W/") for tag in tags.split(",")
        )
    since = _seconds(headers.get("if-modified-since"))
    return since is not None and int(found.st_mtime) <= since


def has_failed_precondition(headers: Headers, found: os.stat_result) -> bool:
    """Whether the client wants only a content that is not there any more (If-Match, If-Unmodified-Since)."""
    tags = headers.get("if-match")
    if tags is not None:
        return tags.strip() != "*" and etag(found) not in (tag.strip() for tag in tags.split(","))
    since = _seconds(headers.get("if-unmodified-since"))
    return since is not None and int(found.st_mtime) > since


def requested_spans(headers: Headers, found: os.stat_result) -> list[Span]:
    """The ranges that are asked for, in the order asked; none for the whole file.

    Another unit, a malformed header, ranges that together are longer than the file, and very many of them are
    answered with the whole file, as RFC 9110, section 14.2, allows: else a short request could ask for a
    large file many times over.

    Raises:
        RangeNotSatisfiable: Every one begins behind the end.
    """
    unit, equals, wanted = (headers.get("range") or "").partition("=")
    if unit.strip() != "bytes" or not equals or _is_outdated(headers.get("if-range"), found):
        return []
    matches = [_RANGE.fullmatch(item) for item in wanted.split(",") if item.strip()]
    spans: list[Span] = []
    for match in matches:
        if match is None or not (match[1] or match[2]):
            return []
        if match[1] and match[2] and int(match[2]) < int(match[1]):
            return []
        span = _span(match, found.st_size)
        if span.start < span.end:
            spans.append(span)
    if matches and not spans:
        raise RangeNotSatisfiable(f"range begins behind the end: {found.st_size}")
    if len(spans) > _MOST_RANGES or sum(end - start for start, end in spans) > found.st_size:
        return []
    return spans


def _span(match: re.Match[str], size: int) -> Span:
    if not match[1]:
        return Span(max(0, size - int(match[2])), size)
    return Span(int(match[1]), min(int(match[2]) + 1, size) if match[2] else size)


def _is_outdated(condition: str | None, found: os.stat_result) -> bool:
    """Whether an If-Range names another content than this one."""
    return (
        condition is not None
        and condition.strip() != etag(found)
        and _seconds(condition) != int(found.st_mtime)
    )


def wants_gzip(headers: Headers) -> bool:
    """Whether gzip is wanted more than the plain bytes: it is named, and identity is not named as its equal.

    A client that merely can unpack (`gzip, deflate, br`: every library by default) gets plain bytes when it
    names more than one encoding without weights: packing costs more time than a local connection saves. Bytes
    of a range are always plain.

    Raises:
        NotAcceptable: Neither is accepted.
    """
    weights: dict[str, float] = {}
    for item in ",".join(headers.get_all("accept-encoding")).lower().split(","):
        name, _, rest = item.strip().partition(";")
        quality = _QUALITY.fullmatch(rest.strip())
        if name.strip():
            weights[name.strip()] = float(quality[1]) if quality else 1.0
    gzip, rest_of_all = weights.get("gzip", 0.0), weights.get("*", 1.0)
    identity = weights.get("identity", rest_of_all)
    if headers.get("range") is not None:
        gzip = 0.0
    if identity == 0 and gzip == 0:
        raise NotAcceptable("no acceptable encoding", hint="identity is served, and gzip without a range")
    return gzip > 0 and (len(weights) == 1 or gzip > identity)


def _seconds(date: str | None) -> int | None:
    """Unix time of an HTTP date. By hand: the standard library's parser brings in all of `email`."""
    match = _DATE.fullmatch((date or "").strip())
    if match is None or match[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(match[index]) for index in (1, 3, 4, 5, 6))
    try:
        moment = datetime(year, _MONTHS.index(match[2]) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return int(moment.timestamp())
