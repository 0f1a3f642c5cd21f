"""The command `constitutional`: its words, its exit codes, and what it prints of a run."""
