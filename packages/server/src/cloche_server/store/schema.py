"""The control plane's tables. The migrations make them; a test holds the two together."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

VERSION = "0009"
"""Newest migration: a database that says it has it needs nothing done."""
EVERYONE = ""
"""Owner of a template that every team may use."""


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC times in Python, plain ones in the database, so that text order is time order."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware time into what is stored."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn what is stored into an aware time."""
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

teams = Table(
    "teams",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("name", name="uq_teams_name"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id", name="fk_api_keys_team_id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("mask", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_used", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    UniqueConstraint("hash", name="uq_api_keys_hash"),
)

templates = Table(
    "templates",
    metadata,
    Column("id", Text, primary_key=True),
    # A team's id, or EVERYONE.
    Column("owner", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("aliases", JSON, nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("isolation", Text, nullable=False, server_default=""),
    Column("spawn_count", Integer, nullable=False),
    Column("last_spawned_at", UtcDateTime),
    # Of a team's own: whether others may use it too.
    Column("is_public", Boolean, nullable=False, server_default="0"),
    # Of a team's own: whether what it is made of, and built from, stays however long nobody uses it.
    Column("is_pinned", Boolean, nullable=False, server_default="0"),
)

template_names = Table(
    "template_names",
    metadata,
    Column("owner", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("template_id", Text, nullable=False),
    PrimaryKeyConstraint("owner", "name", name="pk_template_names"),
)

builds = Table(
    "builds",
    metadata,
    Column("id", Text, primary_key=True),
    Column("template_id", Text, nullable=False),
    Column("team_id", Text, ForeignKey("teams.id", name="fk_builds_team_id"), nullable=False),
    Column("state", Text, nullable=False),
    # The tags that lead to it once it is ready.
    Column("tags", JSON, nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    # Why it failed, and in which step.
    Column("message", Text, nullable=False),
    Column("step", Text),
    # Empty: the server's. That of a template is its default build's.
    Column("isolation", Text, nullable=False, server_default=""),
    Index("ix_builds_template", "template_id", "created_at"),
    Index("ix_builds_state", "state"),
)

build_logs = Table(
    "build_logs",
    metadata,
    Column("build_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("level", Text, nullable=False),
    Column("step", Text),
    Column("message", Text, nullable=False),
    PrimaryKeyConstraint("build_id", "number", name="pk_build_logs"),
)

template_tags = Table(
    "template_tags",
    metadata,
    Column("template_id", Text, nullable=False),
    Column("tag", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("assigned_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("template_id", "tag", name="pk_template_tags"),
    Index("ix_template_tags_build", "build_id"),
)

cached_steps = Table(
    "cached_steps",
    metadata,
    Column("team_id", Text, nullable=False),
    # Hash of everything the steps up to this one were made from.
    Column("key", Text, nullable=False),
    Column("layers", JSON, nullable=False),
    Column("context", JSON, nullable=False),
    Column("used_at", UtcDateTime, nullable=False),
    # Of the build that has asked for it last; a pin of that template keeps it.
    Column("template_id", Text, nullable=False, server_default=""),
    PrimaryKeyConstraint("team_id", "key", name="pk_cached_steps"),
    Index("ix_cached_steps_used", "used_at"),
)

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id", name="fk_sandboxes_team_id"), nullable=False),
    Column("template_id", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
    # Emptied when the sandbox ends: a token must not outlive what it opens.
    Column("access_token", Text, nullable=False),
    Column("traffic_token", Text),
    Column("mask_request_host", Text),
    Column("allow_internet", Boolean, nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("end_at", UtcDateTime, nullable=False),
    Column("state", Text, nullable=False),
    Column("end_reason", Text),
    Column("ended_at", UtcDateTime),
    Column("isolation", Text, nullable=False),
    # As the creator wrote them: what is enforced is worked out from these.
    Column("network", JSON, nullable=False, server_default="{}"),
    Column("lifecycle", JSON, nullable=False, server_default="{}"),
    Column("volume_mounts", JSON, nullable=False, server_default="[]"),
    # What it was made from, and how it was paused the last time.
    Column("snapshot_id", Text),
    Column("parent_id", Text),
    Column("pause_mode", Text, nullable=False, server_default="full"),
    # Each pause ends a run, each resume begins another.
    Column("run", Integer, nullable=False, server_default="1"),
    Index("ix_sandboxes_team_started", "team_id", "state", "started_at", "id"),
    Index("ix_sandboxes_state", "state"),
)

pauses = Table(
    "pauses",
    metadata,
    Column("sandbox_id", Text, nullable=False),
    Column("run", Integer, nullable=False),
    Column("team_id", Text, nullable=False),
    Column("paused_at", UtcDateTime, nullable=False),
    # None as long as it lasts, and for ever in a sandbox that ended while paused.
    Column("resumed_at", UtcDateTime),
    PrimaryKeyConstraint("sandbox_id", "run", name="pk_pauses"),
    Index("ix_pauses_team", "team_id"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id", name="fk_snapshots_team_id"), nullable=False),
    # With its tag.
    Column("name", Text),
    Column("sandbox_id", Text, nullable=False),
    Column("template_id", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("cpu_count", Integer, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("disk_mib", Integer, nullable=False),
    Column("isolation", Text, nullable=False),
    Column("has_memory", Boolean, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("is_temporary", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("volume_mounts", JSON, nullable=False, server_default="[]"),
    Index("ix_snapshots_team_created", "team_id", "state", "created_at", "id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("team_id", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("body_hash", Text, nullable=False),
    Column("sandbox_id", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("team_id", "key", name="pk_idempotency"),
    Index("ix_idempotency_sandbox_id", "sandbox_id"),
)

events = Table(
    "events",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id", name="fk_events_team_id"), nullable=False),
    Column("sandbox_id", Text, nullable=False),
    Column("template_id", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Column("happened_at", UtcDateTime, nullable=False),
    Column("run", Integer, nullable=False, server_default="1"),
    Index("ix_events_team", "team_id", "happened_at", "id"),
    Index("ix_events_sandbox", "sandbox_id", "happened_at", "id"),
    Index("ix_events_happened_at", "happened_at"),
)

volumes = Table(
    "volumes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id", name="fk_volumes_team_id"), nullable=False),
    Column("name", Text, nullable=False),
    # In plain text, since its owner may ask for it again.
    Column("token", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("team_id", "name", name="uq_volumes_team_name"),
)
