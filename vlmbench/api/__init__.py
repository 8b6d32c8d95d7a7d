"""The Python API: ``vlmbench.measure``, ``watch``, ``load``, ``read``, ``summary``, ``compare`` and ``anatomy``."""
