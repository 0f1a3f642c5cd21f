"""Alembic runs this: the migrations, over the connection that `Database` has opened."""

from alembic import context

from constitutional.review.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, transaction_per_migration=False
)
context.run_migrations()
