"""Templates that teams build: builds with logs, tags that lead to them, steps that need not run again."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add them; templates of before belong to everyone."""
    op.add_column("templates", sa.Column("is_public", sa.Boolean, nullable=False, server_default="0"))
    _create_builds()
    op.create_table(
        "template_tags",
        sa.Column("template_id", sa.Text, nullable=False),
        sa.Column("tag", sa.Text, nullable=False),
        sa.Column("build_id", sa.Text, nullable=False),
        sa.Column("assigned_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("template_id", "tag", name="pk_template_tags"),
    )
    op.create_index("ix_template_tags_build", "template_tags", ["build_id"])
    op.create_table(
        "cached_steps",
        sa.Column("team_id", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("layers", sa.JSON, nullable=False),
        sa.Column("context", sa.JSON, nullable=False),
        sa.Column("used_at", sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint("team_id", "key", name="pk_cached_steps"),
    )
    op.create_index("ix_cached_steps_used", "cached_steps", ["used_at"])


def _create_builds() -> None:
    op.create_table(
        "builds",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("template_id", sa.Text, nullable=False),
        sa.Column("team_id", sa.Text, sa.ForeignKey("teams.id", name="fk_builds_team_id"), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("cpu_count", sa.Integer, nullable=False),
        sa.Column("memory_mib", sa.Integer, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("updated_at", sa.DateTime, nullable=False),
        sa.Column("finished_at", sa.DateTime),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("step", sa.Text),
    )
    op.create_index("ix_builds_template", "builds", ["template_id", "created_at"])
    op.create_index("ix_builds_state", "builds", ["state"])
    op.create_table(
        "build_logs",
        sa.Column("build_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        sa.Column("step", sa.Text),
        sa.Column("message", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("build_id", "number", name="pk_build_logs"),
    )
