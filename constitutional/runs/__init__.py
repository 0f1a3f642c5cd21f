"""A run: its settings, its stages in order, the loop that runs them, and the folder that keeps what they made."""
