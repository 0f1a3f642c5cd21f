"""What leads decide, and which labels they have seen."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "sight",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rater_id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("last_vote", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name=op.f("fk_sight_item_id")),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_sight_rater_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sight")),
        sa.UniqueConstraint("rater_id", "item_id", name=op.f("uq_sight_rater_id_item_id")),
    )
    op.create_table(
        "settlement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("rater_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("choice", sa.String(), nullable=False),
        sa.Column("strength", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("constitution", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.CheckConstraint("choice IN ('a', 'b', 'tie', 'both_bad', 'reopened')", name=op.f("ck_settlement_choice")),
        sa.CheckConstraint("strength BETWEEN 1 AND 4", name=op.f("ck_settlement_strength")),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"], name=op.f("fk_settlement_item_id")),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_settlement_rater_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_settlement")),
        sa.UniqueConstraint("item_id", "version", name=op.f("uq_settlement_item_id_version")),
    )


def downgrade() -> None:
    """Take the change back."""
    for table in ("settlement", "sight"):
        op.drop_table(table)
