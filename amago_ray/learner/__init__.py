"""Learner: batches in, better weights out."""
