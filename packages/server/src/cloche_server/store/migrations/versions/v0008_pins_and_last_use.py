"""Templates that are pinned, and for which template what a step has left was asked for the last time."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add both; nothing is pinned, and steps of before belong to no template."""
    op.add_column("templates", sa.Column("is_pinned", sa.Boolean, nullable=False, server_default="0"))
    op.add_column("cached_steps", sa.Column("template_id", sa.Text, nullable=False, server_default=""))
