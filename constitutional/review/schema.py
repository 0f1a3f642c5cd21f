"""The tables of a review. Times are seconds since 1970; a change here needs a migration in `migrations/versions`."""

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

PLAN: Final = Table(
    "plan",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("run", String, nullable=False),
    # With what it is about, where that is not the run's comparisons.
    Column("task", String, nullable=False, unique=True),
    Column("constitution", String, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("principles", JSON, nullable=False),
    # Regular expressions by category of harm: items that come later are looked through likewise.
    Column("sensitive", JSON, nullable=False, server_default="{}"),
    Column("created", Double, nullable=False),
)
ITEM: Final = Table(
    "item",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("plan_id", ForeignKey("plan.id"), nullable=False),
    Column("comparison", String, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),
    # Raters who hold the item or have voted on it: the constraint holds the quota against any mistake of the code.
    Column("taken", Integer, nullable=False, server_default="0"),
    Column("stratum", String, nullable=False),
    Column("probability", Double, nullable=False),
    Column("audit", Boolean, nullable=False),
    Column("gold", String),
    Column("category", String, nullable=False),
    Column("payload", JSON, nullable=False),
    UniqueConstraint("plan_id", "comparison"),
    UniqueConstraint("plan_id", "rank"),
    CheckConstraint("taken BETWEEN 0 AND wanted", name="quota"),
)
_OPEN: Final = text("taken < wanted")
Index("ix_item_open", ITEM.c.plan_id, ITEM.c.rank, sqlite_where=_OPEN, postgresql_where=_OPEN)

RATER: Final = Table(
    "rater",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("role", String, nullable=False),
    Column("opted_out", JSON, nullable=False),
    Column("created", Double, nullable=False),
    CheckConstraint("role IN ('rater', 'lead')", name="role"),
)
BRIEFING: Final = Table(
    "briefing",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("rater_id", ForeignKey("rater.id"), nullable=False),
    Column("plan_id", ForeignKey("plan.id"), nullable=False),
    # Of harmful texts that the rater was warned of; a plan that is extended may come to have others.
    Column("categories", JSON, nullable=False),
    Column("created", Double, nullable=False),
    UniqueConstraint("rater_id", "plan_id"),
)
INVITATION: Final = Table(
    "invitation",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("rater_id", ForeignKey("rater.id"), nullable=False),
    Column("token_hash", String, nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("used", Double),
)
SESSION: Final = Table(
    "session",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("rater_id", ForeignKey("rater.id"), nullable=False),
    Column("token_hash", String, nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
)
ASSIGNMENT: Final = Table(
    "assignment",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("plan_id", ForeignKey("plan.id"), nullable=False),
    Column("item_id", ForeignKey("item.id"), nullable=False),
    Column("rater_id", ForeignKey("rater.id"), nullable=False),
    Column("state", String, nullable=False),
    Column("shown_order", JSON, nullable=False),
    Column("shown", Double, nullable=False),
    Column("expires", Double, nullable=False),
    UniqueConstraint("item_id", "rater_id"),
    CheckConstraint("state IN ('open', 'voted', 'skipped', 'returned')", name="state"),
)
Index("ix_assignment_state", ASSIGNMENT.c.plan_id, ASSIGNMENT.c.state, ASSIGNMENT.c.expires)
Index("ix_assignment_rater", ASSIGNMENT.c.rater_id, ASSIGNMENT.c.plan_id, ASSIGNMENT.c.state)
_ONE_OPEN: Final = text("state = 'open'")
Index(
    "uq_assignment_open",
    ASSIGNMENT.c.rater_id,
    ASSIGNMENT.c.plan_id,
    unique=True,
    sqlite_where=_ONE_OPEN,
    postgresql_where=_ONE_OPEN,
)

VOTE: Final = Table(
    "vote",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("assignment_id", ForeignKey("assignment.id"), nullable=False),
    Column("item_id", ForeignKey("item.id"), nullable=False),
    Column("rater_id", ForeignKey("rater.id"), nullable=False),
    # The row with the highest version is what the rater says now; the others are superseded.
    Column("version", Integer, nullable=False),
    # What the browser sent the answer under: the same answer sent twice has the same key.
    Column("key", String, nullable=False),
    Column("choice", String, nullable=False),
    Column("strength", Integer, nullable=False),
    Column("principles", JSON, nullable=False),
    Column("ranks", JSON(none_as_null=True)),
    Column("rewritten", Text),
    Column("rationale", Text, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("constitution", String, nullable=False),
    Column("created", Double, nullable=False),
    UniqueConstraint("assignment_id", "version"),
    UniqueConstraint("rater_id", "key"),
    CheckConstraint("strength BETWEEN 1 AND 4", name="strength"),
    CheckConstraint(
        "choice IN ('a', 'b', 'tie', 'both_bad', 'skip', 'rewritten', 'ranked', 'withdrawn')", name="choice"
    ),
)
Index("ix_vote_item", VOTE.c.item_id)
Index("ix_vote_rater", VOTE.c.rater_id, VOTE.c.id)
EXPOSURE: Final = Table(
    "exposure",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("rater_id", ForeignKey("rater.id"), nullable=False),
    Column("item_id", ForeignKey("item.id"), nullable=False),
    Column("category", String, nullable=False),
    Column("created", Double, nullable=False),
    UniqueConstraint("rater_id", "item_id"),
)
SIGHT: Final = Table(
    "sight",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("rater_id", ForeignKey("rater.id"), nullable=False),
    Column("item_id", ForeignKey("item.id"), nullable=False),
    # The rater's last row on the item before the rater saw the labeler's label: later rows are not blind.
    Column("last_vote", Integer, nullable=False),
    Column("created", Double, nullable=False),
    UniqueConstraint("rater_id", "item_id"),
)
SETTLEMENT: Final = Table(
    "settlement",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("item_id", ForeignKey("item.id"), nullable=False),
    Column("rater_id", ForeignKey("rater.id"), nullable=False),
    # The row with the highest version is the decision; the others are superseded.
    Column("version", Integer, nullable=False),
    Column("choice", String, nullable=False),
    Column("strength", Integer, nullable=False),
    Column("note", Text, nullable=False),
    # From when the page was shown; not known of the first decisions.
    Column("seconds", Double),
    Column("constitution", String, nullable=False),
    Column("created", Double, nullable=False),
    UniqueConstraint("item_id", "version"),
    CheckConstraint("strength BETWEEN 1 AND 4", name="strength"),
    CheckConstraint("choice IN ('a', 'b', 'tie', 'both_bad', 'reopened')", name="choice"),
)
