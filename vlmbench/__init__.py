"""vlmbench: where the latency of a vision-language model goes.

Importing this package imports neither torch nor transformers; both load when a run starts.
"""

__version__ = "0.1.0"
