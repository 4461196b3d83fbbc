"""Speed benchmarks: one module each, one command, peers in their own environment."""
