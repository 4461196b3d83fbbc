"""Evaluation of a student next to its teacher: scores and their intervals."""
