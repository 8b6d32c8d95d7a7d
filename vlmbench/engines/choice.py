"""From the ``engine`` key of a runtime's YAML to what loads a model in this process. No torch import.

An engine is a function ``(spec, runtime, settings, seed) -> model``: the model's YAML, how it is loaded, all keys of
the runtime's YAML, and the seed of random weights. It gives what the runner measures
(:class:`vlmbench.models.protocol.VisionLanguageModel`). Other packages declare theirs by an entry point of the group
``vlmbench.engines``. (A server is no model in this process: ``engine: endpoint`` has a session of its own.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from vlmbench import plugins

if TYPE_CHECKING:
    from vlmbench.models.protocol import VisionLanguageModel
    from vlmbench.models.runtime import Runtime
    from vlmbench.models.spec import ModelSpec

Engine = Callable[["ModelSpec", "Runtime", Mapping[str, Any], int], "VisionLanguageModel"]

OWN: Mapping[str, str] = {
    "transformers": "vlmbench.engines.generate:load_model",
    "cudagraph": "vlmbench.engines.cudagraph:load_model",
    "vllm": "vlmbench.engines.vllm.model:load_model",
}


def engine(name: str) -> Engine:
    """Return the engine of that name.

    Args:
        name: of :data:`OWN`, or of an entry point of ``vlmbench.engines``.

    Raises:
        ConfigError: there is none, or its package cannot be imported.
    """
    if name not in OWN:
        return cast("Engine", plugins.load("vlmbench.engines", name))
    module, _, function = OWN[name].partition(":")
    return cast("Engine", getattr(import_module(module), function))
