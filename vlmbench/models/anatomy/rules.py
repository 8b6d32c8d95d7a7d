"""Static rules that tell which module of a vision-language model is which stage, without running it.

No rule names an architecture. They ask, in this order, what the model says of itself (transformers' ``get_encoder``,
``get_decoder``, ``get_output_embeddings``; the sub-config a module was built from; the modalities its class declares),
then what its code says (which children ``get_image_features`` or a tower's ``forward`` refer to, and in which order;
read from the byte code), and only last how its children are called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vlmbench.models.anatomy.code import (
    arguments,
    ask,
    base_of,
    callable_parts,
    called_names,
    children_used,
    contains,
    is_norm_only,
    outermost,
    size,
    strictly_contains_any,
    takes_images_only,
)

if TYPE_CHECKING:
    from torch import nn


VISION_NAME = re.compile(r"vision|visual|image|(^|_)vit(_|$)|(^|_)vq")
PROJECTOR_NAME = re.compile(
    r"project|proj$|merger|connector|adapter|adaptor|aligner|resampl|perceiver|q_?former|downsampl|abstractor"
    r"|pooling|embed_vision|vision_embed|image_embed|visual_embed|_neck$"
)
# Other senses, and parts that only train or make images: on no path from pixels to the answer's text.
FOREIGN_NAME = re.compile(r"audio|speech|sound|video|protein|generation_|gen_head|decoder$")

PIXEL_ARGUMENTS = frozenset({"pixel_values", "flattened_patches", "image_patches"})


# ---------------------------------------------------------------------------------------------- vision


def find_vision(top: nn.Module) -> tuple[list[nn.Module], str]:
    """The towers, and the rule that found the first of them. Empty when no rule finds any."""
    whole = (top, base_of(top))
    for rule, modules in _vision_rules(top):
        towers = outermost(m for m in modules if m not in whole and not strictly_contains_any(m, _text_embeddings(top)))
        if towers:
            more = [t for t in _second_towers(top) if t not in whole and not _overlaps(t, towers)]
            return [part for tower in towers + more for part in _called_parts(tower)], rule
    return [], ""


def _overlaps(module: nn.Module, others: Iterable[nn.Module]) -> bool:
    return any(contains(module, other) or contains(other, module) for other in others)


def _text_embeddings(top: nn.Module) -> list[nn.Module]:
    found = ask(top, "get_input_embeddings")
    return [] if found is None else [found]


def _vision_rules(top: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    encoder = ask(top, "get_encoder", modality="image")
    yield "get_encoder(image)", [] if encoder is None else [encoder]
    config = getattr(top, "config", None)
    vision_config = getattr(config, "vision_config", None)
    if vision_config is not None:
        built_from = [m for m in top.modules() if getattr(m, "config", None) is vision_config]
        yield "built from vision_config", built_from
    if getattr(config, "is_encoder_decoder", False) or getattr(top, "main_input_name", "") == "pixel_values":
        encoder = ask(top, "get_encoder")
        yield "get_encoder() takes pixels", [encoder] if encoder is not None and _eats_pixels(encoder) else []
    yield "class takes only images", [m for m in top.modules() if takes_images_only(m)]
    named = [
        child
        for owner in (base_of(top), top)
        for name, child in owner.named_children()
        if VISION_NAME.search(name) and not FOREIGN_NAME.search(name) and not PROJECTOR_NAME.search(name)
    ]
    yield "name of a child", [m for m in named if has_blocks(m)]


def _eats_pixels(module: nn.Module) -> bool:
    return getattr(module, "main_input_name", "") in ("pixel_values", "flattened_patches")


def _second_towers(top: nn.Module) -> list[nn.Module]:
    """Towers beside the first: children of the base model whose class takes only images and that have blocks."""
    used = {id(child) for _, child in image_path(top)}
    return [
        child
        for name, child in base_of(top).named_children()
        if takes_images_only(child)
        and has_blocks(child)
        and not PROJECTOR_NAME.search(name)
        and not FOREIGN_NAME.search(name)
        and (not used or id(child) in used)
    ]


def has_blocks(module: nn.Module) -> bool:
    """Whether a list of two or more layers lies inside."""
    return bool(_block_lists(module))


def _block_lists(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """(path, list) of the lists of layers inside; lists inside a connector are its own affair."""
    from torch import nn

    kinds = (nn.ModuleList, nn.Sequential)
    lists = [(path, m) for path, m in module.named_modules() if isinstance(m, kinds) and len(m) > 1 and size(m) > 0]
    return [(path, m) for path, m in lists if not any(PROJECTOR_NAME.search(part) for part in path.split("."))]


def main_layers(module: nn.Module, path: str) -> str:
    """Where the items of the largest list of layers inside a module at ``path`` begin: ``path.encoder.layers.``"""
    lists = _block_lists(module)
    return f"{path}.{max(lists, key=lambda pair: size(pair[1]))[0]}." if lists else f"{path}."


def _called_parts(tower: nn.Module) -> list[nn.Module]:
    """A vector-quantising tower is used through ``encode``, past its ``forward``: then its children are the parts."""
    if hasattr(type(tower), "encode") and any("quant" in name for name, _ in tower.named_children()):
        parts = [child for _, child in children_used(tower, "encode")]
        return parts or [tower]
    return [tower]


# ------------------------------------------------------------------------------------------- projector


def image_path(top: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, child) that ``get_image_features`` refers to, in order; empty where there is no such method."""
    for owner in (base_of(top), top, *(m for m in top.modules() if hasattr(type(m), "get_image_features"))):
        getter = getattr(type(owner), "get_image_features", None)
        if getter is not None:
            used = [(n, c) for n, c in children_used(owner, "get_image_features") if not FOREIGN_NAME.search(n)]
            # A wrapper only hands the call down: look at the one below.
            if used and "get_image_features" not in called_names(getter):
                return used
    return []


def find_projector(top: nn.Module, towers: list[nn.Module], text: list[nn.Module]) -> tuple[list[nn.Module], str]:
    """The connectors outside and inside the towers, and the rule that found the first of them."""
    # A language model that wraps the tower may wrap the projector too.
    closed = [*towers, *(t for t in text if not strictly_contains_any(t, towers)), *_text_embeddings(top)]
    found: list[nn.Module] = []
    rules: list[str] = []
    for rule, candidates in (
        ("used by get_image_features", image_path(top)),
        ("name of a child", _named_near(top, towers)),
    ):
        for name, child in _unwrapped(candidates, closed):
            if _overlaps(child, closed) or any(contains(child, t) for t in text) or is_norm_only(child):
                continue
            if size(child) or PROJECTOR_NAME.search(name):
                found += callable_parts(child)
        if found:
            rules.append(rule)
            break
    if not towers and not found:
        found = _pixel_eater(top, text)
        rules += ["forward takes pixels"] if found else []
    inside = [part for tower in towers for part in _beside_blocks(tower)]
    if found:  # then what merges between two layers of a tower is the tower's
        inside = [part for part in inside if not _stays_within(part, towers, _text_width(text))]
    if inside:
        rules.append("beside the tower's blocks")
    if not inside and not found:
        inside = [part for tower in towers for part in _projecting_layer(tower, _text_width(text))]
        rules += ["the tower's last layer gives the language model's width"] if inside else []
    return outermost([*inside, *found]), ", ".join(rules)


def _named_near(top: nn.Module, towers: list[nn.Module]) -> list[tuple[str, nn.Module]]:
    """Children called like a connector, of the base model, the top and every module around a tower."""
    around = [m for m in top.modules() if strictly_contains_any(m, towers)]
    owners = {id(owner): owner for owner in (base_of(top), top, *around)}.values()
    pairs = [(n, c) for owner in owners for n, c in owner.named_children()]
    return [(n, c) for n, c in pairs if PROJECTOR_NAME.search(n) and not FOREIGN_NAME.search(n)]


def _pixel_eater(top: nn.Module, text: list[nn.Module]) -> list[nn.Module]:
    """The first module below the language model whose ``forward`` takes pixels and that its owner's code uses."""
    for path, module in top.named_modules():
        if not path or any(contains(module, t) for t in text) or not PIXEL_ARGUMENTS & arguments(type(module).forward):
            continue
        owner, _, name = path.rpartition(".")
        if name in dict(children_used(top.get_submodule(owner), "forward")):
            return [module]
    return []


def _unwrapped(candidates: list[tuple[str, nn.Module]], taken: list[nn.Module]) -> list[tuple[str, nn.Module]]:
    """Candidates, those that wrap a tower replaced by the children that their ``forward`` refers to."""
    result: list[tuple[str, nn.Module]] = []
    for name, child in candidates:
        result += children_used(child, "forward") if strictly_contains_any(child, taken) else [(name, child)]
    return result


def _beside_blocks(tower: nn.Module) -> list[nn.Module]:
    """Connectors inside a tower: what its code uses beside the list of blocks and that is called so."""
    blocks = max(_block_lists(tower), key=lambda pair: size(pair[1]), default=None)
    if blocks is None:
        return []
    found: list[nn.Module] = []
    owner = tower
    for step in blocks[0].split(".") if blocks[0] else []:  # from the tower down to the module that owns the blocks
        if any(has_blocks(c) for n, c in owner.named_children() if n != step and not PROJECTOR_NAME.search(n)):
            break  # one of several encoders in a row: what connects them is no connector to the language model
        for name, child in children_used(owner, "forward"):
            if name != step and PROJECTOR_NAME.search(name):
                found += callable_parts(child)
        owner = owner.get_submodule(step)
    return found


def _projecting_layer(tower: nn.Module, text_width: int | None) -> list[nn.Module]:
    """The last of a tower's layers where it alone gives the language model's width."""
    for _, blocks in sorted(_block_lists(tower), key=lambda pair: -size(pair[1])):
        widths = [[p.shape[0] for p in layer.parameters() if p.dim() > 1][-1:] for layer in blocks.children()]
        if widths[-1] == [text_width] and [text_width] not in widths[:-1]:
            return [list(blocks.children())[-1]]
        break
    return []


def _text_width(text: list[nn.Module]) -> int | None:
    return getattr(getattr(text[-1], "config", None), "hidden_size", None) if text else None


def _stays_within(part: nn.Module, towers: list[nn.Module], text_width: int | None) -> bool:
    """Whether a part of a tower gives the tower's own width and not the language model's."""
    weights = [p.shape[0] for p in part.parameters() if p.dim() > 1]
    widths = [getattr(getattr(t, "config", None), "hidden_size", None) for t in towers if contains(t, part)]
    return bool(weights) and weights[-1] in widths and weights[-1] != text_width


# ------------------------------------------------------------------------------------------------ text


def find_text(top: nn.Module, towers: list[nn.Module]) -> tuple[list[nn.Module], str]:
    """The decoder body, preceded by the text encoder where the language model is an encoder-decoder."""
    decoder, head = ask(top, "get_decoder"), find_head(top, towers)[0]
    if decoder is None or decoder is top:
        decoder, rule = _largest_with_embeddings(top, towers), "largest child with the text embedding"
    else:
        rule = "get_decoder()"
    if decoder is None:
        return [], ""
    encoder = _text_encoder(top, decoder, towers)
    # A decoder with the head inside is a whole causal model: go down to its body.
    for _ in range(4):
        if not any(contains(decoder, part) for part in [*head, *encoder]):
            break
        inner = _body(decoder, head)
        if inner is None:
            break
        decoder, rule = inner, f"{rule}, its body"
    return [*encoder, decoder], rule + (", get_encoder()" if encoder else "")


def _body(decoder: nn.Module, head: list[nn.Module]) -> nn.Module | None:
    """The next module inwards of a causal model: its own decoder, or its largest child that holds no head."""
    inner = ask(decoder, "get_decoder")
    if inner is not None and inner is not decoder and contains(decoder, inner):
        return inner
    children = [c for c in decoder.children() if has_blocks(c) and not any(contains(c, h) for h in head)]
    inner = max(children, key=size, default=None)
    # Where the blocks lie beside the embedding there is no body: the module itself is the smallest one.
    holds = inner is not None and all(contains(inner, e) for e in _text_embeddings(decoder))
    return inner if holds else None


def _text_encoder(top: nn.Module, decoder: nn.Module, towers: list[nn.Module]) -> list[nn.Module]:
    """The text encoder of an encoder-decoder; where the encoder wraps the tower, its text part."""
    for owner in (decoder, top):
        encoder = ask(owner, "get_encoder")
        if encoder is None or encoder is owner or any(contains(t, encoder) for t in towers):
            continue
        wraps = any(contains(encoder, tower) for tower in towers)
        if not wraps and not getattr(getattr(owner, "config", None), "is_encoder_decoder", False):
            continue
        body = ask(encoder, "get_decoder") if wraps else encoder
        apart = body is not None and not _overlaps(body, [*towers, *([decoder] if owner is top else [])])
        if body is not None and apart and has_blocks(body):
            return [body]
    return []


def _largest_with_embeddings(top: nn.Module, towers: list[nn.Module]) -> nn.Module | None:
    children = [c for owner in (base_of(top), top) for c in owner.children()]
    wanted = [c for c in children if any(contains(c, e) for e in _text_embeddings(top)) and has_blocks(c)]
    free = [c for c in wanted if not any(contains(c, t) for t in towers)]
    return max(free or wanted, key=size, default=None)


def find_head(top: nn.Module, others: list[nn.Module]) -> tuple[list[nn.Module], str]:
    """The output embedding, with what is wrapped around it only (the transform of a BERT head, say).

    Args:
        others: the modules of the other stages.
    """
    for owner in top.modules():
        head = ask(owner, "get_output_embeddings")
        if head is not None:
            return [_wrapped(top, head, others)], "get_output_embeddings()"
    return [], ""


def _wrapped(top: nn.Module, head: nn.Module, others: list[nn.Module]) -> nn.Module:
    around = [m for m in top.modules() if contains(m, head) and not any(contains(m, o) for o in others)]
    free = (m for m in around if m is not top and not any(contains(o, m) for o in others))
    return next(free, head)
