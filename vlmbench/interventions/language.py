"""The language model and its decoder layers, as a method that drops tokens needs them; refusals by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmbench.errors import UnreachablePointError

if TYPE_CHECKING:
    from torch import nn

    from vlmbench.interventions.places import Places

_STATEFUL = ("linear", "conv", "recurrent", "mamba", "ssm", "lightning")


def language_model(model: Any, *, method: str) -> nn.Module:
    """The decoder body of a loaded model.

    Raises:
        UnreachablePointError: an encoder-decoder, a model split over processes, or layers that hold a state instead of
            keys and values (a dropped token is not a masked one there).
    """
    architecture = type(model.module).__name__
    paths = model.anatomy.language_model
    if len(paths) != 1:
        raise UnreachablePointError(f"{method}: {architecture} has {len(paths)} language models; one is needed")
    if getattr(model, "team", None) is not None:
        raise UnreachablePointError(f"{method} runs in one process; this model is split over several (runtime.tp_plan)")
    body: nn.Module = model.module.get_submodule(paths[0])
    config: Any = getattr(body, "config", model.module.config)
    kinds = set(getattr(config, "layer_types", None) or ())
    if stateful := sorted(kind for kind in kinds if any(word in kind for word in _STATEFUL)):
        raise UnreachablePointError(
            f"{method}: {architecture} has layers of kind {', '.join(stateful)}, which keep a running state; a token "
            "dropped there is not the same as one that is never attended to"
        )
    if any("index" in kind or "sparse" in kind for kind in kinds):
        raise UnreachablePointError(f"{method}: {architecture} chooses keys itself (sparse layers): not supported")
    return body


def refuse_captured(model: Any, *, method: str) -> None:
    """Refuse a model whose steps are replays of what was captured: they would go on without the method.

    Raises:
        UnreachablePointError: the engine captures the model.
    """
    if getattr(model, "loop", None) is not None:
        raise UnreachablePointError(
            f"{method}: this engine replays the model as it was captured, without the method; use runtime=eager "
            "(a smaller image, intervention=downsample, can be measured here)"
        )


def decoder_layers(body: nn.Module, *, method: str) -> list[nn.Module]:
    """The decoder layers of a language model, first to last.

    Raises:
        UnreachablePointError: they cannot be found.
    """
    from torch import nn as torch_nn

    config: Any = getattr(body, "config", None)
    expected = getattr(config, "num_hidden_layers", None)
    lists = [part for part in body.modules() if isinstance(part, torch_nn.ModuleList) and len(part)]
    named = [part for part in lists if len(part) == expected]
    found = named or sorted(lists, key=len, reverse=True)[:1]
    if not found:
        raise UnreachablePointError(f"{method}: no list of decoder layers in {type(body).__name__}")
    return list(found[0])


def check_window(body: nn.Module, places: Places, *, method: str) -> None:
    """Refuse a prompt and answer that reach a sliding window: the window counts the tokens that are left.

    Raises:
        UnreachablePointError: dropping tokens would move the window.
    """
    config: Any = getattr(body, "config", None)
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    if window and any("sliding" in kind for kind in kinds) and places.length + places.new_tokens >= window:
        raise UnreachablePointError(
            f"{method}: {places.length} prompt tokens and {places.new_tokens} new ones reach the sliding window of "
            f"{window}, which counts the tokens that are left: another method than dropping"
        )


def is_flash(body: nn.Module) -> bool:
    """Whether a flash-attention package runs, which takes gaps in the positions for packed sequences."""
    config: Any = getattr(body, "config", None)
    return "flash" in str(getattr(config, "_attn_implementation", ""))


def masks_in_decode(model: Any, body: nn.Module) -> bool:
    """Whether the decode steps get an attention mask made for the longest layer: eager attention, a fixed cache."""
    config: Any = getattr(body, "config", None)
    kernel = str(getattr(config, "_attn_implementation", ""))
    return model.cache_implementation is not None or not (kernel == "sdpa" or "flash" in kernel)
