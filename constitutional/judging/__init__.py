"""Whoever judges replies: the labeler, how far it can be trusted, and the scores that come of judgements."""
