"""Training: objectives, the student they start from, and the trainer that runs them."""

from tdistill.training import objectives

__all__ = ["objectives"]
