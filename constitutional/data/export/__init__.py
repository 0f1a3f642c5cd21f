"""Preferences in the formats that other trainers and annotation tools read."""
