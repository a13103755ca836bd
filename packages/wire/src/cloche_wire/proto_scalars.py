"""Single values of the proto3 JSON mapping: strings, bytes, integers, enums."""

from __future__ import annotations

import base64
import binascii
import re
from decimal import Decimal
from typing import TYPE_CHECKING

from cloche_wire.errors import InvalidArgument

if TYPE_CHECKING:
    from enum import IntEnum

_NUMBER = re.compile(r"-?(0|[1-9]\d{0,40})(\.\d{1,40})?([eE][+-]?\d{1,3})?\Z", re.ASCII)
_URLSAFE_TO_STANDARD = str.maketrans("-_", "+/")
_INT32_RANGE = (-(2**31), 2**31 - 1)


def write_string(value: str) -> str:
    """Return the text as it may stand in JSON: half surrogate pairs become U+FFFD.

    File names come from the system as bytes and reach us with `surrogateescape`: one bad name must not make
    a folder unreadable.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return value


def read_string(value: object, path: str) -> str:
    """Return the value if it is a text that UTF-8 can express.

    Raises:
        InvalidArgument: Anything else.
    """
    if not isinstance(value, str):
        raise InvalidArgument(f"expected a string: {path}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"text is not unicode: {path}") from error
    return value


def write_bytes(value: bytes) -> str:
    """Return the bytes in padded standard base64."""
    return base64.b64encode(value).decode("ascii")


def read_bytes(value: object, path: str) -> bytes:
    """Return the bytes of a base64 text: standard or url-safe alphabet, with or without padding.

    Raises:
        InvalidArgument: Not such a text.
    """
    if not isinstance(value, str):
        raise InvalidArgument(f"expected base64 text: {path}")
    text = value.translate(_URLSAFE_TO_STANDARD).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"expected base64 text: {path}") from error


def read_int(value: object, path: str, lowest: int, highest: int) -> int:
    """Return a whole number given as number or as text; `1e3` and `2.0` are whole numbers too.

    Raises:
        InvalidArgument: Not a whole number, or out of range.
    """
    if isinstance(value, bool):
        raise InvalidArgument(f"expected a whole number: {path}")
    if isinstance(value, int):
        number = value
    elif isinstance(value, float):
        if not value.is_integer():  # also false for infinities and NaN
            raise InvalidArgument(f"expected a whole number: {path}")
        number = int(value)
    elif isinstance(value, str) and _NUMBER.match(value):
        number = _whole(value, path)
    else:
        raise InvalidArgument(f"expected a whole number: {path}")
    if not lowest <= number <= highest:
        raise InvalidArgument(f"number out of range: {path}")
    return number


def write_enum(enum: type[IntEnum], value: int) -> str | int:
    """Return the name of a known number, else the number: proto3 enums are open."""
    try:
        return enum(value).name
    except ValueError:
        return int(value)


def read_enum(enum: type[IntEnum], value: object, path: str) -> int:
    """Return the member of a name or number; an unknown number is kept as it is.

    Raises:
        InvalidArgument: An unknown name, or a number beyond 32 bits.
    """
    if isinstance(value, str):
        if value not in enum.__members__:
            raise InvalidArgument(f"unknown value: {path}: {value[:64]}")
        return enum[value]
    number = read_int(value, path, *_INT32_RANGE)
    try:
        return enum(number)
    except ValueError:
        return number


def _whole(text: str, path: str) -> int:
    number = Decimal(text)
    if number != number.to_integral_value():
        raise InvalidArgument(f"expected a whole number: {path}")
    return int(number)
