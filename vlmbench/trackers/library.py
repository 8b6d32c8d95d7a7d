"""The library of a tracker: imported when it is needed, missed in words."""

from __future__ import annotations

import importlib
from typing import Any

from vlmbench.errors import ConfigError


def library(module: str, *, tracker: str, package: str) -> Any:
    """Import a tracker's library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"tracker={tracker} needs a package that is not installed here ({error})\n"
            f"pip install {package}, or leave tracker={tracker} out"
        ) from error
