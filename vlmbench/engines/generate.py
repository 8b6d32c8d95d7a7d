"""``runtime=eager`` and ``runtime=compiled``: transformers' own ``generate()``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmbench.models.runtime import Runtime
    from vlmbench.models.spec import ModelSpec
    from vlmbench.models.transformers_model import TransformersModel


def load_model(spec: ModelSpec, runtime: Runtime, settings: Mapping[str, Any], seed: int) -> TransformersModel:  # noqa: ARG001
    """Load a model that answers by ``generate()``; see :data:`vlmbench.engines.choice.Engine`."""
    from vlmbench.models.loading import load

    return load(spec, runtime, seed=seed)
