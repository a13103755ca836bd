"""Images as registries keep them: made in memory, byte by byte, as a hostile publisher makes them too."""

import gzip
import hashlib
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
"""The architecture of this machine, as images name it."""

Descriptor = dict[str, Any]


def digest_of(content: bytes) -> str:
    """How content is named."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Images:
    """What a registry has."""

    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(
        default_factory=dict[tuple[str, str], tuple[str, bytes]]
    )
    """Media type and text by repository and tag or digest."""

    def blob(self, content: bytes, media_type: str) -> Descriptor:
        """Keep a blob; how manifests name it."""
        self.blobs[digest_of(content)] = content
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    def layer(self, archive: bytes, kind: str = "gzip") -> Descriptor:
        """Keep a tar file as a layer: packed by us for `gzip`, else as it is, whatever it says it is."""
        packed = gzip.compress(archive, mtime=0) if kind == "gzip" else archive
        return self.blob(packed, f"{OCI_LAYER}+{kind}" if kind else OCI_LAYER)

    def image(
        self,
        repository: str,
        tag: str,
        layers: Iterable[Descriptor],
        *,
        config: Mapping[str, Any] | None = None,
        architecture: str = HERE,
    ) -> Descriptor:
        """Keep an image of one architecture, under its digest and the tag."""
        kept = list(layers)
        about = {
            "architecture": architecture,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in kept]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(json.dumps(about).encode(), OCI_CONFIG),
            "layers": kept,
        }
        found = self._keep(repository, tag, OCI_MANIFEST, manifest)
        return {**found, "platform": {"os": "linux", "architecture": architecture}}

    def index(self, repository: str, tag: str, images: Iterable[Descriptor]) -> Descriptor:
        """Keep an image of several architectures."""
        manifest = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(images)}
        return self._keep(repository, tag, OCI_INDEX, manifest)

    def _keep(self, repository: str, tag: str, media_type: str, manifest: Mapping[str, Any]) -> Descriptor:
        text = json.dumps(manifest).encode()
        for reference in (tag, digest_of(text)):
            self.manifests[repository, reference] = media_type, text
        return {"mediaType": media_type, "digest": digest_of(text), "size": len(text)}

    def write_layout(self, folder: Path, repository: str, tag: str) -> Path:
        """Write one of them to disk as an OCI layout."""
        media_type, text = self.manifests[repository, tag]
        (folder / "blobs" / "sha256").mkdir(parents=True)
        for content in (*self.blobs.values(), *(text for _, text in self.manifests.values())):
            (folder / "blobs" / "sha256" / digest_of(content).partition(":")[2]).write_bytes(content)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        described = {"mediaType": media_type, "digest": digest_of(text), "size": len(text)}
        named = {**described, "annotations": {"org.opencontainers.image.ref.name": tag}}
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
        return folder

    def write_docker_archive(self, path: Path, repository: str, tag: str) -> Path:
        """Write one of them to disk as `docker save` does."""
        manifest = json.loads(self.manifests[repository, tag][1])
        config = manifest["config"]["digest"].partition(":")[2]
        plain = [gzip.decompress(self.blobs[layer["digest"]]) for layer in manifest["layers"]]
        about = json.loads(self.blobs[manifest["config"]["digest"]])
        about["rootfs"]["diff_ids"] = list(map(digest_of, plain))
        files = {f"{config}.json": json.dumps(about).encode()}
        files |= {f"{number}/layer.tar": content for number, content in enumerate(plain)}
        listed = {"Config": f"{config}.json", "RepoTags": [f"{repository}:{tag}"]}
        listed["Layers"] = [f"{number}/layer.tar" for number in range(len(plain))]
        files["manifest.json"] = json.dumps([listed]).encode()
        staged = path.with_name(f"{path.name}.files")
        with tarfile.open(path, "w") as tar:
            for name, content in files.items():
                member = staged / name
                member.parent.mkdir(parents=True, exist_ok=True)
                member.write_bytes(content)
                tar.add(member, name)
        return path
