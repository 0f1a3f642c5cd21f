"""Comparisons that people judge with other tools: tasks out, votes back in; one file a format."""
