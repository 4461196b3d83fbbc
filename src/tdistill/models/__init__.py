"""Causal language models: loading, where tokens lie, scores at chosen tokens, generation."""
