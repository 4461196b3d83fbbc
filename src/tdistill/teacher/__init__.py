"""Teacher evidence: rollouts and scoring, the cache they are kept in, and sources of it."""
