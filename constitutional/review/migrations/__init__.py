"""Changes of the tables over time, for Alembic."""
