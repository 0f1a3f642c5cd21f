"""The forms that rows of preferences have, each recognised by its columns."""
