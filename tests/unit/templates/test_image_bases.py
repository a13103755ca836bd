"""A base of an image: what is asked of its registry, what is fetched, unpacked and known again."""

import json

import pytest
from tests.fakes.workshop import FakeWorkshop
from tests.support.oci_images import HERE, Images

from cloche_server.config import Builds
from cloche_server.templates.build import Base, Kept, Target
from cloche_server.templates.images.bases import ImageBases
from cloche_server.templates.steps import Context, Description, Registry
from cloche_server.templates.workshop import PreparedBase
from cloche_wire.errors import InvalidArgument, PermissionDenied, TooLarge, UnsupportedOption

pytestmark = pytest.mark.anyio
PLACE = "docker.io/library/app"
LARGE = 5 << 20
"""Of a layer that is worth one of ours."""


class World:
    """A registry's images, a team's memory, and the log of a build."""

    def __init__(self) -> None:
        self.workshop = FakeWorkshop()
        config = {"os": "linux", "architecture": HERE, "config": {"Env": ["A=1"]}}
        self.workshop.config = json.dumps(config)
        self.images = Images()
        self.kept: dict[str, Kept] = {}
        self.lines: list[str] = []

    def offer(self, tag: str, *contents: bytes) -> str:
        """Have the registry hold an image with these layers; its digest."""
        layers = [{**self.images.layer(content), "size": LARGE} for content in contents]
        return self.publish(tag, self.images.image("app", tag, layers)["digest"])

    def publish(self, tag: str, digest: str) -> str:
        for (_, reference), (_, text) in self.images.manifests.items():
            mark = "@" if reference.startswith("sha256:") else ":"
            self.workshop.registry[f"{PLACE}{mark}{reference}"] = text.decode()
        return digest

    async def find(self, key: str) -> Kept | None:
        return self.kept.get(key)

    async def keep(self, key: str, kept: Kept) -> None:
        self.kept[key] = kept

    async def write(self, message: str, step: str, level: str = "info") -> None:
        assert step == "base"
        self.lines.append(message)

    async def base(self, image: str, settings: Builds | None = None, **more: object) -> Base:
        target = Target("t" * 20, "b", "team", "name", 2, 1024)
        bases = ImageBases(settings or Builds(), target, self.workshop, self, self)
        return await bases.of_image(Description(image, **more))  # type: ignore[arg-type]


@pytest.fixture
def world() -> World:
    return World()


async def test_each_layer_is_one_of_ours_and_what_all_have_is_on_top(world: World) -> None:
    digest = world.offer("v1", b"one", b"two")
    base = await world.base("app:v1")
    assert base.layers == ("layer3", "layer2", "layer1", "image root")
    assert [setting.layers for setting in world.workshop.settings] == [
        ("image root",), ("layer1", "image root"), ("layer2", "layer1", "image root")
    ]  # fmt: skip
    assert base.context == Context(env={"A": "1"})
    assert base.image == f"{PLACE}@{digest}"
    assert f"image {PLACE}@{digest}" in world.lines


async def test_a_known_image_is_asked_for_and_nothing_else(world: World) -> None:
    world.offer("v1", b"one", b"two")
    first = await world.base("app:v1")
    again = await world.base("app:v1")
    assert again == first
    assert len(world.workshop.fetched) == 1
    assert world.workshop.prepared == 1
    assert len(world.workshop.read) == 2


async def test_layers_that_another_image_has_brought_are_not_fetched_again(world: World) -> None:
    world.offer("v1", b"one", b"two")
    await world.base("app:v1")
    lower = world.images.layer(b"one")["digest"]
    world.offer("v2", b"one", b"three")
    await world.base("app:v2")
    assert world.workshop.fetched[-1][1] == (lower,)
    assert world.workshop.applied.count(lower) == 1


async def test_a_layer_that_comes_twice_is_fetched_for_its_second_place(world: World) -> None:
    """The empty layer of old builders stands in an image more than once."""
    world.offer("v1", b"empty", b"two")
    await world.base("app:v1")
    world.offer("v2", b"empty", b"three", b"empty")
    await world.base("app:v2")
    assert world.workshop.fetched[-1][1] == ()


async def test_the_same_layers_over_others_are_other_layers(world: World) -> None:
    world.offer("v1", b"one", b"two")
    world.offer("v2", b"two", b"one")
    first, second = await world.base("app:v1"), await world.base("app:v2")
    assert not set(first.layers) & set(second.layers) - {"image root"}


async def test_many_layers_leave_room_for_steps(world: World) -> None:
    world.offer("v1", *[b"%d" % number for number in range(70)])
    base = await world.base("app:v1")
    assert len(base.layers) == 42
    assert len(world.workshop.applied) == 70


async def test_small_layers_share_one(world: World) -> None:
    """They cost a sandbox each; those that are large stay what images of one family share."""
    large, *small = [world.images.layer(b"%d" % number) for number in range(4)]
    world.images.image("app", "v1", [{**large, "size": LARGE}, *small])
    world.publish("v1", "")
    assert (await world.base("app:v1")).layers == ("layer3", "layer2", "layer1", "image root")
    assert len(world.workshop.applied) == 4
    world.images.image("app", "v2", [{**large, "size": LARGE}, small[0], world.images.layer(b"other")])
    world.publish("v2", "")
    assert (await world.base("app:v2")).layers == ("layer5", "layer4", "layer1", "image root")


async def test_an_index_is_followed_to_this_machine(world: World) -> None:
    ours = world.images.image("app", "here", [world.images.layer(b"1")])
    world.images.index("app", "both", [ours])
    world.publish("both", "")
    base = await world.base("app:both")
    assert base.image == f"{PLACE}@{ours['digest']}"
    assert [source.name for source in world.workshop.read] == [f"{PLACE}:both", f"{PLACE}@{ours['digest']}"]
    assert world.workshop.fetched[0][0].name == f"{PLACE}@{ours['digest']}"


async def test_a_manifest_that_is_not_its_digest_is_refused(world: World) -> None:
    digest = world.offer("v1", b"one")
    world.workshop.registry[f"{PLACE}@{digest}"] += " "
    with pytest.raises(InvalidArgument, match="something else"):
        await world.base(f"app@{digest}")


async def test_without_bash_steps_are_run_by_sh(world: World) -> None:
    world.offer("v1", b"one")
    world.workshop.base = PreparedBase("/bin/sh", is_complete=True)
    assert (await world.base("app:v1")).context.shell == ("/bin/sh", "-l", "-c")
    assert (await world.base("app:v1")).context.shell == ("/bin/sh", "-l", "-c")


async def test_packages_that_could_not_be_had_are_tried_again(world: World) -> None:
    world.offer("v1", b"one")
    world.workshop.base = PreparedBase("/bin/sh", is_complete=False)
    await world.base("app:v1")
    await world.base("app:v1")
    assert world.workshop.prepared == 2


async def test_credentials_go_to_the_registry_each_time(world: World) -> None:
    world.offer("v1", b"one")
    registry = Registry(username="name", password="secret")
    for _ in range(2):
        await world.base("app:v1", from_image_registry=registry)
    assert {(source.username, source.password) for source in world.workshop.read} == {("name", "secret")}
    assert len(world.workshop.read) == 2
    assert not [line for line in world.lines if "secret" in line]


async def test_keys_of_google_are_a_password(world: World) -> None:
    world.offer("v1", b"one")
    registry = Registry(type="gcp", service_account_json='{"type":"service_account"}')
    await world.base("app:v1", from_image_registry=registry)
    assert world.workshop.read[0].username == "_json_key"
    assert world.workshop.read[0].password == '{"type":"service_account"}'


async def test_keys_of_amazon_say_what_to_do(world: World) -> None:
    registry = Registry(type="aws", aws_access_key_id="a", aws_secret_access_key="b", aws_region="c")
    with pytest.raises(UnsupportedOption) as raised:
        await world.base("app:v1", from_image_registry=registry)
    assert "get-login-password" in (raised.value.hint or "")
    with pytest.raises(InvalidArgument, match="not whole"):
        await world.base("app:v1", from_image_registry=Registry(username="only"))


async def test_what_the_operator_does_not_let_in_is_not_asked_for(world: World) -> None:
    world.offer("v1", b"one")
    with pytest.raises(PermissionDenied):
        await world.base("app:v1", Builds(registries=("ghcr.io",)))
    world.images.image("app", "large", [{**world.images.layer(b"one"), "size": 3 << 20}])
    world.publish("large", "")
    with pytest.raises(TooLarge):
        await world.base("app:large", Builds(max_image_mib=2))
    assert not world.workshop.fetched


async def test_scratch_is_what_all_templates_have(world: World) -> None:
    """Nothing is asked for: `FROM scratch` has root's account, and what is added to every image."""
    world.workshop.base = PreparedBase("", is_complete=True)
    base = await world.base("scratch")
    assert base.layers == ("layer1", "image root")
    assert not world.workshop.read
    assert base.image == ""
