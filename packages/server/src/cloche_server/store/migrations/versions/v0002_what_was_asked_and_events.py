"""What a sandbox's creator asked for beyond the first columns, and a table of what happened to sandboxes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add them; sandboxes of before asked for nothing of it."""
    op.add_column("sandboxes", sa.Column("network", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("sandboxes", sa.Column("lifecycle", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("sandboxes", sa.Column("volume_mounts", sa.JSON, nullable=False, server_default="[]"))
    op.create_table(
        "events",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("team_id", sa.Text, sa.ForeignKey("teams.id", name="fk_events_team_id"), nullable=False),
        sa.Column("sandbox_id", sa.Text, nullable=False),
        sa.Column("template_id", sa.Text, nullable=False),
        sa.Column("build_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("happened_at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_events_team", "events", ["team_id", "happened_at", "id"])
    op.create_index("ix_events_sandbox", "events", ["sandbox_id", "happened_at", "id"])
    op.create_index("ix_events_happened_at", "events", ["happened_at"])
