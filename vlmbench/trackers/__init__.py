"""Experiment trackers: a finished run's headline numbers, provenance, figures and page, in MLflow, TensorBoard or W&B.

Optional and off (``tracker=none``). A tracker reads what the run directory holds already; it measures nothing, and what
it cannot do costs no measurement.
"""
