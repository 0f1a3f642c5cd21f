"""How long leads take to settle an item."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.add_column("settlement", sa.Column("seconds", sa.Double(), nullable=True))


def downgrade() -> None:
    """Take the change back."""
    op.drop_column("settlement", "seconds")
