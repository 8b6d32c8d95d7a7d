"""The command line: Hydra, overrides, validation, tasks, grids. Only here Hydra and OmegaConf are imported."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Find ``vlmbench.cli.Outcomes``, as configurations name it, without importing Hydra for whoever asks for less."""
    if name == "Outcomes":
        from vlmbench.cli.main import Outcomes

        return Outcomes
    raise AttributeError(f"module 'vlmbench.cli' has no attribute {name!r}")
