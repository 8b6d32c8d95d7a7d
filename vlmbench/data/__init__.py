"""Data sets: each is a lazy sequence of requests."""
