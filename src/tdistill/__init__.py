"""Distil a causal language model by temporal-difference imitation on the teacher's top-p set."""

__version__ = "0.1.0"
