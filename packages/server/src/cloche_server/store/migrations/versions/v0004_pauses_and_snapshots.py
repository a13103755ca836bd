"""Pauses and snapshots: what a sandbox was made from, its runs, and copies to make others of."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add them; sandboxes of before were made of templates, and are in their first run."""
    op.add_column("sandboxes", sa.Column("snapshot_id", sa.Text))
    op.add_column("sandboxes", sa.Column("parent_id", sa.Text))
    op.add_column("sandboxes", sa.Column("pause_mode", sa.Text, nullable=False, server_default="full"))
    op.add_column("sandboxes", sa.Column("run", sa.Integer, nullable=False, server_default="1"))
    op.add_column("events", sa.Column("run", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "pauses",
        sa.Column("sandbox_id", sa.Text, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("paused_at", sa.DateTime, nullable=False),
        sa.Column("resumed_at", sa.DateTime),
        sa.PrimaryKeyConstraint("sandbox_id", "run", name="pk_pauses"),
    )
    op.create_index("ix_pauses_team", "pauses", ["team_id"])
    _create_snapshots()


def _create_snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("team_id", sa.Text, sa.ForeignKey("teams.id", name="fk_snapshots_team_id"), nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("sandbox_id", sa.Text, nullable=False),
        sa.Column("template_id", sa.Text, nullable=False),
        sa.Column("build_id", sa.Text, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("cpu_count", sa.Integer, nullable=False),
        sa.Column("memory_mib", sa.Integer, nullable=False),
        sa.Column("disk_mib", sa.Integer, nullable=False),
        sa.Column("isolation", sa.Text, nullable=False),
        sa.Column("has_memory", sa.Boolean, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("is_temporary", sa.Boolean, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_snapshots_team_created", "snapshots", ["team_id", "state", "created_at", "id"])
