"""Which volumes a snapshot was taken with: sandboxes made of it have the same."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add them; those of before were of sandboxes without any, or of files alone."""
    op.add_column("snapshots", sa.Column("volume_mounts", sa.JSON, nullable=False, server_default="[]"))
