"""What clients are shown of a sandbox: when they get it, in a listing, and in full."""

from collections.abc import Collection

import msgspec
from msgspec import UNSET

from cloche_server.api import shapes
from cloche_server.api.network_options import shown_network
from cloche_server.config import Config
from cloche_server.store.sandboxes import SandboxRecord


def sandbox(config: Config, record: SandboxRecord) -> shapes.Sandbox:
    """Return what a client needs to talk to it."""
    return shapes.Sandbox(
        record.template_id,
        record.id,
        record.alias,
        record.access_token,
        record.traffic_token,
        config.public_domain,
        record.isolation,
    )


def listed_sandbox(record: SandboxRecord, frozen: Collection[str]) -> shapes.ListedSandbox:
    """Return what a listing shows of it, given which ones stand still."""
    return shapes.ListedSandbox(
        record.template_id,
        record.id,
        record.alias,
        record.started_at,
        record.end_at,
        record.cpu_count,
        record.memory_mib,
        record.disk_mib,
        record.metadata,
        record.volume_mounts,
        record.isolation,
        "paused" if record.is_paused else "running",
        record.id in frozen,
        record.snapshot_id or UNSET,
        record.parent_id or UNSET,
    )


def sandbox_detail(config: Config, record: SandboxRecord, frozen: Collection[str]) -> shapes.SandboxDetail:
    """Return all there is to tell of it."""
    return shapes.SandboxDetail(
        **msgspec.structs.asdict(listed_sandbox(record, frozen)),
        envd_access_token=record.access_token,
        domain=config.public_domain,
        allow_internet_access=record.allow_internet,
        network=shown_network(record.network),
        lifecycle=msgspec.convert(record.lifecycle, shapes.Lifecycle),
        pause_mode=record.pause_mode if record.is_paused else UNSET,
    )
