"""Probes: what is watched during a run, and how."""
