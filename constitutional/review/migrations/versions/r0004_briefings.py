"""Raters read instructions and a warning for every plan, and a plan keeps what its texts are hidden by."""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.add_column("plan", sa.Column("sensitive", sa.JSON(), nullable=False, server_default="{}"))
    briefing = op.create_table(
        "briefing",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rater_id", sa.Integer(), nullable=False),
        sa.Column("plan_id", sa.Integer(), nullable=False),
        sa.Column("categories", sa.JSON(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["plan_id"], ["plan.id"], name=op.f("fk_briefing_plan_id")),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_briefing_rater_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_briefing")),
        sa.UniqueConstraint("rater_id", "plan_id", name=op.f("uq_briefing_rater_id_plan_id")),
    )
    # Whoever has worked at a plan knows its task. The texts that the warning was of are not known, so it comes again.
    known = sa.text(
        "SELECT DISTINCT rater_id, plan_id, warned AS created FROM assignment JOIN rater ON rater.id = rater_id "
        "WHERE warned IS NOT NULL"
    )
    rows = [{**row, "categories": []} for row in op.get_bind().execute(known).mappings()]
    op.bulk_insert(briefing, rows)
    op.drop_column("rater", "warned")


def downgrade() -> None:
    """Take the change back."""
    op.add_column("rater", sa.Column("warned", sa.Double(), nullable=True))
    op.execute("UPDATE rater SET warned = (SELECT MIN(created) FROM briefing WHERE rater_id = rater.id)")
    op.drop_table("briefing")
    op.drop_column("plan", "sensitive")
