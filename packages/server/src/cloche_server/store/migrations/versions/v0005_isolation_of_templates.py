"""The isolation that a template is for."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add it; those of before are for any."""
    op.add_column("templates", sa.Column("isolation", sa.Text, nullable=False, server_default=""))
