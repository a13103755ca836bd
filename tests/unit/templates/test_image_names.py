"""What names of images mean, who may use them, and what manifests say."""

import json

import pytest
from tests.support.oci_images import HERE, OCI_LAYER, Images

from cloche_server.templates.images import manifests, reference
from cloche_wire.errors import InvalidArgument, PermissionDenied, TooLarge

DIGEST = "sha256:" + "a" * 64
OTHER = "arm64" if HERE == "amd64" else "amd64"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest"),
        ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("index.docker.io/library/ubuntu:1", "docker.io/library/ubuntu:1"),
        ("oven/bun:latest", "docker.io/oven/bun:latest"),
        ("ghcr.io/a/b/c:v1.2_3", "ghcr.io/a/b/c:v1.2_3"),
        ("localhost/a", "localhost/a:latest"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("registry.lan:5000/team/app", "registry.lan:5000/team/app:latest"),
        (f"ubuntu@{DIGEST}", f"docker.io/library/ubuntu@{DIGEST}"),
        (f"ubuntu:22.04@{DIGEST}", f"docker.io/library/ubuntu@{DIGEST}"),
        ("docker://ghcr.io/a/b", "ghcr.io/a/b:latest"),
        ("oci:team/app:v1", "team/app:v1"),
        ("docker-archive:saved.tar", "saved.tar"),
    ],
)
def test_a_name_is_made_whole(text: str, name: str) -> None:
    assert reference.parse(text).name == name


@pytest.mark.parametrize(
    "text",
    ["", "UPPER", "a b", "a/../b", "-x", "--tls-verify=false", "a@sha256:1", "a:b:c", "host.x:99999999/a",
     "a\n", "oci:../up", "oci:/etc", "oci:a/../../b", "docker-archive:", "oci:-x y", "a" * 300, "dir:/etc",
     "a/" * 200, "docker://", "http://a.b/c", "registry.x/$(id)"],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        reference.parse(text)


@pytest.mark.parametrize(
    ("text", "patterns", "is_allowed"),
    [
        ("ubuntu", ("*",), True),
        ("ubuntu", (), False),
        ("ubuntu", ("docker.io",), True),
        ("ubuntu", ("docker.io/library/*",), True),
        ("oven/bun", ("docker.io/library/*",), False),
        ("ghcr.io/a/b", ("docker.io",), False),
        ("docker.io.evil.example/a", ("docker.io",), False),
        ("oci:anything", (), True),
    ],
)
def test_the_operator_says_whose_images_are_used(
    text: str, patterns: tuple[str, ...], is_allowed: bool
) -> None:
    if is_allowed:
        reference.check_allowed(reference.parse(text), patterns)
    else:
        with pytest.raises(PermissionDenied):
            reference.check_allowed(reference.parse(text), patterns)


def test_credentials_are_for_one_registry() -> None:
    assert reference.same_registry("ghcr.io/a/b", "ghcr.io/c/d:1")
    assert not reference.same_registry("ubuntu", "ghcr.io/c/d:1")
    assert not reference.same_registry("ghcr.io/a/b", "")


def _text(images: Images, repository: str, tag: str) -> str:
    return images.manifests[repository, tag][1].decode()


def test_the_image_of_this_machine_is_chosen() -> None:
    images = Images()
    ours = images.image("a", "here", [images.layer(b"1")])
    other = images.image("a", "other", [images.layer(b"2")], architecture=OTHER)
    images.index("a", "both", [other, ours])
    assert manifests.choice(_text(images, "a", "both")) == ours["digest"]
    assert manifests.choice(_text(images, "a", "here")) is None


def test_an_image_for_others_names_whom_it_is_for() -> None:
    images = Images()
    other = images.image("a", "other", [], architecture=OTHER)
    images.index("a", "others", [{**other, "platform": {"os": "linux", "architecture": "s390x"}}, other])
    with pytest.raises(InvalidArgument, match=f"linux/{HERE}; there is: linux/s390x, linux/{OTHER}"):
        manifests.choice(_text(images, "a", "others"))
    with pytest.raises(InvalidArgument, match=f"but for linux/{OTHER}"):
        manifests.variables(json.dumps({"os": "linux", "architecture": OTHER}))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"schemaVersion":1,"fsLayers":[]}', '{"schemaVersion":2,"layers":[]}',
     '{"schemaVersion":2,"layers":[{"digest":"../x"}],"config":{"digest":"x"}}',
     '{"schemaVersion":2,"layers":[{"digest":"' + DIGEST + '","mediaType":"x/y"}],"config":{"digest":"x"}}',
     '{"schemaVersion":2,"layers":[{"digest":"' + DIGEST + '","size":-1}],"config":{"digest":"x"}}'],
)  # fmt: skip
def test_what_is_no_image_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        manifests.image(text)


def test_too_many_layers_are_refused() -> None:
    layer = {"digest": DIGEST, "size": 1, "mediaType": OCI_LAYER}
    text = json.dumps({"schemaVersion": 2, "layers": [layer] * 501, "config": layer})
    with pytest.raises(TooLarge, match="501 layers"):
        manifests.image(text)


def test_content_that_is_not_its_digest_is_refused() -> None:
    manifests.check_digest("a", manifests.digest_of("a"))
    with pytest.raises(InvalidArgument, match="something else"):
        manifests.check_digest("b", manifests.digest_of("a"))


def test_variables_are_taken_as_they_can_be() -> None:
    env = ["PATH=/bin", "A=b=c", "EMPTY=", "1BAD=x", "no value", "NUL=\0"]
    found = manifests.variables(json.dumps({"os": "linux", "architecture": HERE, "config": {"Env": env}}))
    assert found == {"PATH": "/bin", "A": "b=c", "EMPTY": ""}
