"""The Python API: ``vlmbench.measure``, ``watch``, ``load``, ``read``, ``summary``, ``compare`` and ``anatomy``.

A public name is added here and to ``__all__`` of ``vlmbench/__init__.py``, which imports it when it is first asked for.
"""

PLACES = {
    "Run": "run",
    "WatchedRun": "watching",
    "anatomy": "models",
    "compare": "run",
    "load": "models",
    "measure": "measuring",
    "read": "run",
    "summary": "run",
    "watch": "watching",
}
"""Public name → the module of this package that holds it."""
