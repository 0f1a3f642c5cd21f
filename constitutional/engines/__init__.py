"""Backends that answer requests: one interface (`base`), several implementations."""
