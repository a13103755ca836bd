"""The isolation that each build asks for: tags of one template may lead to builds of different ones."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add it; builds of before have that of their template, which was the last one's."""
    op.add_column("builds", sa.Column("isolation", sa.Text, nullable=False, server_default=""))
    op.execute(
        "UPDATE builds SET isolation = coalesce("
        "(SELECT templates.isolation FROM templates WHERE templates.id = builds.template_id), '')"
    )
