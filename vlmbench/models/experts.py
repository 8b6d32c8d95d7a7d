"""How the experts of a mixture run: in a loop, grouped, or batched. It decides the latency of every such model.

Transformers takes ``grouped_mm`` where the model allows it and, off the CPU, changes it to ``batched_mm`` for the
decode steps of ``generate``. What really runs stands in the record; ``runtime.experts_implementation`` chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from vlmbench.errors import ModelError


def choose_experts(module: Any, wanted: str | None, *, name: str) -> None:
    """Set the implementation of all experts; None leaves it to transformers.

    Args:
        module: the top-level model.
        wanted: ``eager`` (a loop over the experts), ``grouped_mm``, ``batched_mm``, ``deepgemm``, ``sonicmoe``.
        name: what the error calls the model.

    Raises:
        ModelError: it has no experts whose implementation can be chosen, or not this one.
    """
    if wanted is None:
        return
    if not list(_implementations(module)):
        raise ModelError(
            f"'{name}' has no experts whose implementation can be chosen; leave runtime.experts_implementation=null"
        )
    try:
        module.set_experts_implementation(wanted)
    except (ValueError, ImportError, RuntimeError) as error:
        raise ModelError(f"runtime.experts_implementation={wanted} for '{name}': {error}") from error
    if (found := sorted(set(_implementations(module)))) != [wanted]:
        raise ModelError(f"runtime.experts_implementation={wanted}: '{name}' keeps {', '.join(found)}; leave it null")


def experts_facts(module: Any) -> dict[str, str]:
    """What experts run with, in the prefill and in decode steps; empty for a model without such experts."""
    if not (prefill := sorted(set(_implementations(module)))):
        return {}
    # The context in which ``generate`` runs its decode steps; it changes implementations and puts them back.
    decoding: Any = getattr(module, "_optimize_model_for_decode", nullcontext)
    with decoding():
        decode = sorted(set(_implementations(module)))
    return {"experts_implementation": ", ".join(prefill), "experts_implementation_decode": ", ".join(decode)}


def _implementations(module: Any) -> Iterator[str]:
    """Of each layer's experts. Transformers' decorator gives a module of experts a layout and its configuration."""
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if hasattr(part, "is_transposed") and hasattr(config, "_experts_implementation"):
            yield str(config._experts_implementation)
