"""Files that people bring: prompts, comparisons, verdicts, evaluation sets."""
