"""What must hold between an anatomy and one observed ``generate()``, whatever the architecture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from vlmbench.models.anatomy.find import inside, stage_parameters
from vlmbench.models.anatomy.watch import Call
from vlmbench.models.protocol import Anatomy
from vlmbench.text import percent

# Not one call of the language model a token: a block of tokens is denoised at once.
BLOCK_DIFFUSION = {"diffusion_gemma"}
_EXPECTED = Path(__file__).with_name("expected_stages.yaml")


def expected_stages() -> dict[str, dict[str, set[str]]]:
    """Architecture to stage to paths with '.*' for indices: the reviewed table."""
    groups: list[dict[str, Any]] = yaml.safe_load(_EXPECTED.read_text(encoding="utf-8"))
    return {
        name: {stage: set(paths) for stage, paths in group.items() if stage != "architectures"}
        for group in groups
        for name in group["architectures"]
    }


def general(anatomy: Anatomy) -> dict[str, set[str]]:
    """Stage to paths, with '.*' for indices of lists."""
    return {stage: {re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in paths} for stage, paths in anatomy.stages()}


def violations(name: str, model: nn.Module, anatomy: Anatomy, calls: list[Call], new_tokens: int) -> list[str]:
    """What does not hold, in words; empty when all does."""
    by_path: dict[str, list[Call]] = {}
    for call in calls:
        by_path.setdefault(call.path, []).append(call)
    never = [path for _, paths in anatomy.stages() for path in paths if path not in by_path]
    if never:
        return [f"never called: {', '.join(never)}"]
    found = [*_order(anatomy, by_path), *_disjoint(model, anatomy), *_left_out(model, anatomy, by_path)]
    if name not in BLOCK_DIFFUSION:
        found += _steps(anatomy, by_path, new_tokens)
    return [*found, *_widths(model, anatomy, by_path)]


def _steps(anatomy: Anatomy, by_path: Mapping[str, list[Call]], new_tokens: int) -> Iterable[str]:
    *encoders, decoder = anatomy.language_model
    lengths = [call.length for call in by_path[decoder]]
    if len(lengths) != new_tokens:
        yield f"{decoder} ran {len(lengths)} times for {new_tokens} tokens"
    grows = [lengths[0] + i for i in range(len(lengths))] if lengths[0] is not None else []
    if any(n != 1 for n in lengths[1:]) and lengths != grows:
        yield f"{decoder} saw the lengths {lengths}"
    for encoder in encoders:
        if len(by_path[encoder]) != 1 or by_path[encoder][0].leave > by_path[decoder][0].enter:
            yield f"{encoder} did not run once before the decoder"
    for head in anatomy.head:
        if len(by_path[head]) != new_tokens:
            yield f"{head} ran {len(by_path[head])} times for {new_tokens} tokens"


def _order(anatomy: Anatomy, by_path: Mapping[str, list[Call]]) -> Iterable[str]:
    text = [by_path[path][0] for path in anatomy.language_model]
    first = min(text, key=lambda call: call.enter)
    for path in (*anatomy.vision_encoder, *anatomy.projector):
        call = by_path[path][0]
        within = any(inside(path, t) for t in anatomy.language_model)
        if not (call.leave < first.enter or (within and call.leave < first.leave)):
            yield f"{path} did not run before the language model"
    if anatomy.vision_encoder and anatomy.projector:
        start = min(by_path[path][0].enter for path in anatomy.vision_encoder)
        if min(by_path[path][0].enter for path in anatomy.projector) < start:
            yield "a projector ran before the vision encoder"


def _disjoint(model: nn.Module, anatomy: Anatomy) -> Iterable[str]:
    counts = stage_parameters(model, anatomy)
    if sum(counts.values()) != 2 * counts["total"]:
        yield f"stage parameters do not add up: {counts}"
    texts = {id(p) for path in anatomy.language_model for p in model.get_submodule(path).parameters()}
    for path in (*anatomy.vision_encoder, *anatomy.projector):
        within = any(inside(path, t) for t in anatomy.language_model)
        if not within and any(id(p) in texts for p in model.get_submodule(path).parameters()):
            yield f"{path} holds parameters of the language model"
    paths = [path for _, parts in anatomy.stages() for path in parts]
    if len(set(paths)) != len(paths):
        yield "a module is in two stages"


def _left_out(model: nn.Module, anatomy: Anatomy, by_path: Mapping[str, list[Call]]) -> Iterable[str]:
    """Modules that ran, that hold more than 2 % of the parameters of all that ran, and that no stage covers."""
    stages = [path for _, parts in anatomy.stages() for path in parts]
    modules = {path: model.get_submodule(path) for path in by_path}
    ran = {id(p): p.numel() for m in modules.values() for p in m.parameters(recurse=False)}
    covered = {id(p) for path in stages for p in model.get_submodule(path).parameters()}
    total = sum(ran.values())
    for path, module in modules.items():
        if any(inside(stage, path) or inside(path, stage) for stage in stages):
            continue
        count = sum(p.numel() for p in module.parameters() if id(p) in ran and id(p) not in covered)
        if count > 0.02 * total:
            yield f"{path} ran and is in no stage ({percent(count / total, 2)} of the parameters that ran)"


def _widths(model: nn.Module, anatomy: Anatomy, by_path: Mapping[str, list[Call]]) -> Iterable[str]:
    """The last connector gives the width that the language model reads."""
    if not anatomy.projector:
        return
    text: Any = model.get_submodule(anatomy.language_model[-1])
    width = text.get_input_embeddings().weight.shape[-1] if hasattr(text, "get_input_embeddings") else None
    last = max((by_path[path][0] for path in anatomy.projector), key=lambda call: call.leave)
    if width and last.outputs and width not in [shape[-1] for shape in last.outputs]:
        yield f"{last.path} gives {last.outputs}, the language model reads a width of {width}"


def prefill_coverage(anatomy: Anatomy, calls: list[Call]) -> float:
    """Share of the time from the first stage's start to the first head's end that is spent inside stages."""
    stages = {path for _, parts in anatomy.stages() for path in parts}
    spans = sorted((c.enter_ns, c.leave_ns) for c in calls if c.path in stages)
    heads = [c.leave_ns for c in calls if c.path in anatomy.head]
    start, end = spans[0][0], min(heads, default=spans[-1][1])
    covered, reached = 0, start
    for enter, leave in spans:
        covered += max(min(leave, end) - max(enter, reached), 0)
        reached = max(reached, leave)
    return covered / (end - start)
