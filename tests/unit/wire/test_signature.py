"""Signed file URLs."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche_wire.errors import InvalidArgument, Unauthenticated
from cloche_wire.signature import Operation, read_query, sign, verify

TOKEN = "0123456789abcdef0123456789abcdef01234567"
USERS = st.sampled_from(["", "root", "user", "a_b-c"])


def _query(
    path: str, operation: Operation, user: str = "", expires_at: int | None = None
) -> list[tuple[str, str]]:
    pairs = [("path", path), ("signature", sign(path, operation, user, TOKEN, expires_at))]
    if user:
        pairs.append(("username", user))
    if expires_at is not None:
        pairs.append(("signature_expiration", str(expires_at)))
    return pairs


def test_the_form_is_that_of_the_official_clients() -> None:
    digest = hashlib.sha256(f"/a b:read:root:{TOKEN}:17".encode()).digest()
    assert sign("/a b", "read", "root", TOKEN, 17) == "v1_" + base64.b64encode(digest).decode().rstrip("=")


@given(st.text(), USERS, st.none() | st.integers(2_000, 3_000))
def test_what_is_signed_is_accepted(path: str, user: str, expires_at: int | None) -> None:
    verify(read_query(_query(path, "read", user, expires_at)), "read", TOKEN, now_s=1_000)


@given(st.text(), USERS)
def test_a_read_signature_does_not_write(path: str, user: str) -> None:
    with pytest.raises(Unauthenticated):
        verify(read_query(_query(path, "read", user)), "write", TOKEN, now_s=0)


def test_another_token_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        verify(read_query(_query("/a", "read")), "read", "f" * 40, now_s=0)


def test_an_expired_url_is_refused() -> None:
    query = read_query(_query("/a", "read", expires_at=100))
    verify(query, "read", TOKEN, now_s=100)
    with pytest.raises(Unauthenticated, match="expired"):
        verify(query, "read", TOKEN, now_s=100.5)


def test_an_expiry_cannot_be_taken_off_or_moved() -> None:
    pairs = _query("/a", "read", expires_at=100)
    for changed in (pairs[:-1], [*pairs[:-1], ("signature_expiration", "101")]):
        with pytest.raises(Unauthenticated):
            verify(read_query(changed), "read", TOKEN, now_s=0)


def test_a_user_name_cannot_carry_a_piece_of_the_path() -> None:
    signature = sign("/a:read:b", "read", "", TOKEN)
    with pytest.raises(Unauthenticated, match="username"):
        read_query([("path", "/a"), ("username", "b:read:"), ("signature", signature)])


@pytest.mark.parametrize("user", ["a:b", "A", "1a", "a b", "a" * 33, "ü", "a\n"])
def test_bad_user_names_are_refused_before_anything_is_compared(user: str) -> None:
    with pytest.raises(Unauthenticated, match="username"):
        read_query([("path", "/a"), ("username", user), ("signature", sign("/a", "read", user, TOKEN))])


@pytest.mark.parametrize("name", ["path", "username", "signature", "signature_expiration"])
def test_a_parameter_given_twice_is_refused(name: str) -> None:
    pairs = _query("/a", "read", "root", 100)
    with pytest.raises(InvalidArgument, match=name):
        read_query([*pairs, (name, "x")])


@pytest.mark.parametrize("expiry", ["", "-1", "+1", "01", "1.5", "1e3", " 1", "٣", "9" * 17])
def test_an_expiry_is_a_plain_decimal(expiry: str) -> None:
    with pytest.raises(Unauthenticated, match="expiration"):
        read_query([("path", "/a"), ("signature", "v1_x"), ("signature_expiration", expiry)])


def test_a_query_without_signature_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        read_query([("path", "/a")])
