"""vlmbench: where the latency of a vision-language model goes.

Importing this package imports neither torch nor transformers; both load when a run starts.

    >>> import vlmbench
    >>> sorted(vlmbench.__all__) == vlmbench.__all__
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmbench.api.measuring import measure
    from vlmbench.api.models import anatomy, load
    from vlmbench.api.run import Run, compare, read, summary
    from vlmbench.api.watching import WatchedRun, watch

__version__ = "0.1.0"
__all__ = ["Run", "WatchedRun", "anatomy", "compare", "load", "measure", "read", "summary", "watch"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``--help`` of the command line must not wait for pandas."""
    from vlmbench.api import PLACES

    if name in PLACES:
        return getattr(importlib.import_module(f"vlmbench.api.{PLACES[name]}"), name)
    raise AttributeError(f"module 'vlmbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, those that are not imported yet too."""
    return sorted({*globals(), *__all__})
