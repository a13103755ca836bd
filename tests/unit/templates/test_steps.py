"""A description is refused before anything runs, by the number of its step; values run nothing."""

import msgspec
import pytest

from cloche_server.templates import steps
from cloche_server.templates.steps import Description, Stage, Step
from cloche_wire.errors import InvalidArgument

HASH = "a" * 64


def test_what_clients_send_is_read_whatever_else_they_say() -> None:
    body = b"""{"fromImage": "e2bdev/base", "force": true, "readyCmd": "true", "fromImageRegistry": null,
        "steps": [{"type": "COPY", "args": ["a", "b", "", ""], "filesHash": "%s", "forceUpload": true}]}"""
    read = msgspec.json.decode(body % HASH.encode(), type=Description)
    assert read.steps == [Step("COPY", ["a", "b", "", ""], HASH)]
    steps.check(read)


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (Step("VOLUME", ["/data"]), "no such kind"),
        (Step("RUN", []), "takes a command"),
        (Step("RUN", ["  "]), "takes a command"),
        (Step("RUN", ["true", "user", "more"]), "takes a command"),
        (Step("RUN", ["a\0b"]), "NUL"),
        (Step("RUN", ["x" * 300_000]), "256 KiB"),
        (Step("ENV", ["A"]), "names and values"),
        (Step("ENV", ["A B", "1"]), "not a name"),
        (Step("WORKDIR", []), "takes a path"),
        (Step("USER", ["a b"]), "name of a user"),
        (Step("USER", ["-x"]), "name of a user"),
        (Step("COPY", ["a", "b"]), "filesHash"),
        (Step("COPY", ["a", "b"], "../../etc/passwd"), "filesHash"),
        (Step("COPY", ["a"], HASH), "a source, a destination"),
        (Step("COPY", ["a", "b", "$(id)", ""], HASH), "not an owner"),
        (Step("COPY", ["a", "b", "", "u+x"], HASH), "not a mode"),
        (Step("COPY_FROM", ["nobody", "a", "b", "", ""]), "no such stage"),
    ],
)
def test_a_step_that_cannot_be_is_named_by_its_number(step: Step, problem: str) -> None:
    with pytest.raises(InvalidArgument, match="step 2") as raised:
        steps.check(Description(steps=[Step("RUN", ["true"]), step]))
    assert problem in raised.value.message


def test_a_template_has_one_base_and_stages_only_those_before() -> None:
    for bad in (
        Description("a", "b"),
        Description(from_stage="x"),
        Description(stages=[Stage("a", from_stage="b"), Stage("b")]),
        Description(steps=[Step("ENV", ["A", "1"])] * 501),
        Description(start_cmd="a\0b"),
    ):
        with pytest.raises(InvalidArgument):
            steps.check(bad)
    steps.check(Description(from_stage="b", stages=[Stage("a"), Stage("b", from_stage="a")]))


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("$A/${A}s$NONE.", "one/ones."),
        (r"\$A \n \\", r"$A \n \\"),
        ("$(rm -rf /) `id`", "$(rm -rf /) `id`"),
        ("${NONE:-two}${EMPTY:-three}${EMPTY-four}${NONE:-$A}", "twothreeone"),
        ("${A:+yes}${NONE:+no}${EMPTY:+no}${EMPTY+yes}", "yesyes"),
    ],
)
def test_values_are_expanded_and_nothing_is_run(text: str, result: str) -> None:
    assert steps.expand(text, {"A": "one", "EMPTY": ""}) == result


def test_keys_tell_everything_apart() -> None:
    keys = {
        steps.key_of("", ["a", "b"]),
        steps.key_of("", ["ab", ""]),
        steps.key_of("", ["a"], ["b"]),
        steps.key_of("x", ["a", "b"]),
    }
    assert len(keys) == 4
    assert steps.key_of("", {"b": 1, "a": 2}) == steps.key_of("", {"a": 2, "b": 1})
