"""Whoever asks may only strengthen what the operator has chosen."""

import pytest

from cloche_server.isolation_choice import settle
from cloche_wire.errors import InvalidArgument, PermissionDenied


@pytest.mark.parametrize(
    ("asked", "template", "default", "allowed", "found"),
    [
        ("", "", "container", (), "container"),
        ("", "", "gvisor", (), "gvisor"),
        ("gvisor", "", "container", (), "gvisor"),
        ("", "gvisor", "container", (), "gvisor"),
        ("gvisor", "container", "container", (), "gvisor"),
        ("container", "container", "container", (), "container"),
        ("container", "", "gvisor", ("container",), "container"),
        ("", "container", "gvisor", ("container",), "container"),
        ("gvisor", "container", "gvisor", (), "gvisor"),
        ("container", "gvisor", "container", ("container",), "container"),
    ],
)
def test_what_is_asked_comes_before_the_template_and_the_server(
    asked: str, template: str, default: str, allowed: tuple[str, ...], found: str
) -> None:
    assert settle(asked, template, default, allowed) == found


@pytest.mark.parametrize(
    ("asked", "template", "default"),
    [
        ("container", "", "gvisor"),
        ("", "container", "gvisor"),
        ("container", "gvisor", "container"),
        ("container", "container", "gvisor"),
    ],
)
def test_a_weaker_one_is_refused_with_what_would_permit_it(asked: str, template: str, default: str) -> None:
    with pytest.raises(PermissionDenied, match="'container' is weaker than 'gvisor'") as refused:
        settle(asked, template, default, ())
    assert "allow_isolation" in str(refused.value.hint)


@pytest.mark.parametrize(("asked", "template"), [("microvm", ""), ("", "microvm"), ("container", "microvm")])
def test_an_unknown_one_is_never_taken_for_another(asked: str, template: str) -> None:
    with pytest.raises(InvalidArgument, match="no such isolation: 'microvm'"):
        settle(asked, template, "container", ("container", "gvisor"))
