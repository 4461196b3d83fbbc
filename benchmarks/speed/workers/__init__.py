"""Processes that are timed one step at a time; some of them run in the peers' environment."""
