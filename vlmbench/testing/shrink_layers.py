"""Cut the layers of a transformers configuration to one of each kind, and fit what refers to layers or head sizes."""

from __future__ import annotations

import re
from typing import Any, TypeGuard

MAX_LAYERS = 8

DEPTH = re.compile(
    r"^(num_hidden_layers|num_layers|depth|n_layers?|layers|(en|de)coder_layers|num_(en|de)coder_layers"
    r"|num_global_layers|resampler_depth|conf_num_hidden_layers)$"
)
LAYER_INDEX = re.compile(r"ind(ex|ic)e?s$|_idxs$|cross_attention_layers$|feature_layers?$|insert_layer_id$|_layers$")
_NOT_LAYERS = re.compile(r"token")
_SOURCES = re.compile(r"source_layers$")  # one layer's number for each layer


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def names_layers(name: str) -> bool:
    """Whether a field holds layers' numbers."""
    return bool(LAYER_INDEX.search(name)) and not _NOT_LAYERS.search(name)


def cut_layers(config: Any) -> None:
    """Keep the first layer of every kind, at least two, in place; renumber what refers to layers."""
    old = dict(vars(config))
    depths = {name: depth for name, depth in old.items() if DEPTH.search(name) and is_int(depth) and depth > 0}
    for name, depth in depths.items():
        lists = {n: v for n, v in old.items() if isinstance(v, list | tuple) and len(v) == depth and _is_flat(v)}
        overrides = layer_overrides(config)
        kinds = [v for n, v in lists.items() if not _SOURCES.search(n)]
        keep = _layers_to_keep(depth, [*kinds, [overrides.get(layer) for layer in range(depth)]])
        setattr(config, name, len(keep))
        kept = {new: overrides[layer] for new, layer in enumerate(keep) if layer in overrides}
        overrides.clear()
        overrides.update(kept)
        for n, v in lists.items():
            chosen = [v[i] for i in keep]
            setattr(config, n, type(v)([_position(i, keep) for i in chosen] if _SOURCES.search(n) else chosen))
        for n, v in old.items():
            if n not in lists and n not in depths and names_layers(n):
                setattr(config, n, _renumbered(v, keep))


def layer_overrides(config: Any) -> dict[int, dict[str, Any]]:
    """Attributes that differ from layer to layer, where the configuration keeps them so; change them in place."""
    spec = vars(config).get("_heterogeneity_spec")
    return getattr(spec, "per_layer_overrides", None) or {}


def renumber_features(config: Any, parts: list[Any]) -> None:
    """Fit the numbers of the tower's layers whose output is used; they stand in other parts than the tower's own."""
    tower = getattr(config, "vision_config", None)
    depth = next((v for n, v in vars(tower).items() if DEPTH.search(n) and is_int(v)), 0) if tower else 0
    for part in parts if depth else ():
        for name, value in list(vars(part).items()):
            if re.search(r"vision_feature_layers?$", name) and value is not None:
                many = isinstance(value, list | tuple)
                fit = [max(min(v, depth - 1), -depth) for v in (value if many else [value])]
                setattr(part, name, type(value)(fit) if many else fit[0])


def fit_rope(config: Any, head_dim: int) -> None:
    """Sections of a multi-axis rotary embedding sum to half of the rotated part of a head, in place.

    Args:
        config: its rotary settings are fitted; already shrunk otherwise.
        head_dim: of a head where the configuration names none.
    """
    head_dim = vars(config).get("head_dim") or head_dim
    for name in ("rope_parameters", "rope_scaling"):
        parameters = vars(config).get(name)
        if isinstance(parameters, dict):
            setattr(config, name, _fitted(parameters, head_dim, vars(config).get("qk_rope_head_dim")))


def _fitted(parameters: dict[str, Any], head_dim: int, rotated: int | None) -> dict[str, Any]:
    fitted: dict[str, Any] = {
        key: _fitted(value, head_dim, rotated) if isinstance(value, dict) else value
        for key, value in parameters.items()
    }
    if rotated and fitted.get("partial_rotary_factor"):
        fitted["partial_rotary_factor"] = rotated / head_dim
    half = int(head_dim * (fitted.get("partial_rotary_factor") or 1)) // 2
    sections = fitted.get("mrope_section")
    if isinstance(sections, list | tuple):
        fitted["mrope_section"] = _split(half, list(sections))
    for key in ("short_factor", "long_factor"):
        factors = fitted.get(key)
        if isinstance(factors, list):
            fitted[key] = factors[:half]
    return fitted


def _is_flat(values: Any) -> bool:
    return not any(isinstance(v, list | tuple | dict) for v in values)


def _layers_to_keep(depth: int, kinds: list[Any]) -> list[int]:
    first: dict[tuple[Any, ...], int] = {}
    for layer in range(depth):
        first.setdefault(tuple(str(kind[layer]) for kind in kinds), layer)
    keep = sorted(first.values())[:MAX_LAYERS]
    rest = (layer for layer in range(depth) if layer not in keep)
    while len(keep) < min(2, depth):
        keep = sorted([*keep, next(rest)])
    return keep


def _position(layer: int, keep: list[int]) -> int:
    """Where an old layer, or the last kept one before it, stands now."""
    return max(sum(k <= layer for k in keep) - 1, 0)


def _renumbered(value: Any, keep: list[int]) -> Any:
    if is_int(value):
        return max(value, -len(keep)) if value < 0 else min(value, len(keep) - 1)
    if isinstance(value, list | tuple) and all(is_int(v) for v in value):
        new = [_renumbered(v, keep) for v in value]
        return type(value)(dict.fromkeys(new)) if all(v >= 0 for v in value) else type(value)(new)
    return value


def _split(total: int, shares: list[int]) -> list[int]:
    """``total`` split in the proportion of ``shares``, each part at least 1."""
    parts = [max(total * share // sum(shares), 1) for share in shares]
    parts[parts.index(max(parts))] += total - sum(parts)
    return parts
