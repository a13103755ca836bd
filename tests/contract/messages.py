"""Hypothesis strategies for every message of the daemon, from the field tables themselves."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import strategies as st

from cloche_wire.messages.schema import Field, Kind, Message, Shape, table_of
from cloche_wire.messages.timestamp import Timestamp

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_TIMESTAMPS = st.builds(
    Timestamp,
    st.integers(-62_135_596_800, 253_402_300_799),
    st.one_of(st.just(0), st.integers(0, 999_999_999)),
)
_SCALARS: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.STRING: _TEXT,
    Kind.BYTES: st.binary(max_size=40),
    Kind.BOOL: st.booleans(),
    Kind.INT32: st.integers(-(2**31), 2**31 - 1),
    Kind.SINT32: st.integers(-(2**31), 2**31 - 1),
    Kind.UINT32: st.integers(0, 2**32 - 1),
    Kind.INT64: st.integers(-(2**63), 2**63 - 1),
    Kind.TIMESTAMP: _TIMESTAMPS,
}


@functools.cache
def messages(cls: type[Message]) -> st.SearchStrategy[Any]:
    """Return messages of a class in which at most one member of each oneof is set."""
    fields = table_of(cls).fields
    plain = {field.name: _values(field.spec) for field in fields if field.spec.oneof is None}
    whole: list[st.SearchStrategy[dict[str, Any]]] = [st.fixed_dictionaries(plain)]
    for oneof in sorted(table_of(cls).oneofs):
        members = [field for field in fields if field.spec.oneof == oneof]
        choices = [st.just({})] + [_one(field.name, field.spec) for field in members]
        whole.append(st.one_of(choices))
    return st.tuples(*whole).map(
        lambda parts: cls(**{key: value for part in parts for key, value in part.items()})
    )


def _one(name: str, spec: Field) -> st.SearchStrategy[dict[str, Any]]:
    return _present(spec).map(lambda value: {name: value})


def _values(spec: Field) -> st.SearchStrategy[Any]:
    if spec.shape is Shape.REPEATED:
        return st.lists(_present(spec), max_size=3)
    if spec.shape is Shape.STRING_MAP:
        return st.dictionaries(_TEXT, _TEXT, max_size=3)
    if spec.optional or spec.kind in (Kind.MESSAGE, Kind.TIMESTAMP):
        return st.one_of(st.none(), _present(spec))
    return _present(spec)


def _present(spec: Field) -> st.SearchStrategy[Any]:
    if spec.kind is Kind.MESSAGE:
        assert spec.message is not None
        return messages(spec.message)
    if spec.kind is Kind.ENUM:
        assert spec.enum is not None
        return st.one_of(st.sampled_from(list(spec.enum)), st.integers(50, 2**31 - 1))
    return _SCALARS[spec.kind]
