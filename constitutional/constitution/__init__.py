"""Constitutions: how a file is read, checked, compared with another, and principles are drawn from it."""
