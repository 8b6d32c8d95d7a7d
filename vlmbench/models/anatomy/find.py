"""Which module of a vision-language model is which stage: found by rule, checked, shown as a table.

:func:`find_anatomy` looks at the model only; :func:`vlmbench.models.anatomy.watch.watch_anatomy` refines its answer by
watching one real ``generate()``, and :mod:`vlmbench.models.anatomy.verify` asks for one where the rules fail. An
``override`` (three lines of YAML) settles what neither can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmbench.errors import AnatomyError
from vlmbench.models.anatomy import code, rules
from vlmbench.models.anatomy.override import OVERRIDE, Found, check_override, check_places
from vlmbench.models.protocol import Anatomy

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class AnatomyRow:
    """One line of the table: a module of a stage, its class, parameters inside it, their share, the rule used.

    ``parameters`` counts what lies inside the module and belongs to its stage (a projector inside a tower counts as
    projector); shared parameters count where they are met first.
    """

    stage: str
    path: str
    module_class: str
    parameters: int
    share: float
    rule: str


def find_anatomy(module: nn.Module, override: Mapping[str, Sequence[str]] | None = None) -> Anatomy:
    """Find the stages of a model by static rules.

    Args:
        module: the top-level model, on any device (``meta`` too).
        override: stage name to dotted module paths; replaces what the rules find for that stage, an empty list says
            that the stage does not exist.

    Returns:
        the anatomy; a stage that does not exist has no path, and a note says so.

    Raises:
        AnatomyError: no language model can be found, a model that takes images shows no part that reads them, or the
            override names an unknown stage or module, or one module for two stages.
    """
    given = check_override(module, override or {})
    found = _found(module, given)
    if given:
        check_places(module, given, found, _found(module, {}))
    stages = {stage: parts for stage, (parts, _) in found.items()}
    how = {stage: rule for stage, (parts, rule) in found.items() if parts or rule == OVERRIDE}
    anatomy = Anatomy(**stages, how=how, notes=describe(module, stages))
    _check_found(module, anatomy, given)
    return anatomy


def _found(module: nn.Module, given: Mapping[str, Sequence[str]]) -> Found:
    """All stages: what the override says, and what the rules find beside it."""
    said = {stage: [module.get_submodule(path) for path in parts] for stage, parts in given.items()}
    towers, vision_rule = _or(said, "vision_encoder", lambda: rules.find_vision(module))
    text, text_rule = _or(said, "language_model", lambda: rules.find_text(module, towers))
    projector, projector_rule = _or(said, "projector", lambda: rules.find_projector(module, towers, text))
    head, head_rule = _or(said, "head", lambda: rules.find_head(module, [*towers, *text, *projector]))
    paths = _Paths(module)
    found = {
        "vision_encoder": (paths.of(towers), vision_rule),
        "projector": (paths.of(projector), projector_rule),
        "language_model": (paths.of(text), text_rule),
        "head": (paths.of(head), head_rule),
    }
    return found | {stage: (tuple(parts), OVERRIDE) for stage, parts in given.items()}


def _or(
    said: Mapping[str, list[nn.Module]], stage: str, rule: Callable[[], tuple[list[nn.Module], str]]
) -> tuple[list[nn.Module], str]:
    """What the override says of a stage, or what the rule finds."""
    return (said[stage], OVERRIDE) if stage in said else rule()


class _Paths:
    """Dotted path of every module below a top-level one; a module met twice has its first path."""

    def __init__(self, top: nn.Module) -> None:
        self._by_id = {id(m): path for path, m in top.named_modules()}

    def of(self, modules: Iterable[nn.Module]) -> tuple[str, ...]:
        """The paths of modules, in order."""
        return tuple(self._by_id[id(m)] for m in modules)


def takes_images(module: nn.Module) -> bool:
    """Whether the configuration has a part for images or ``forward`` has an argument for pixels."""
    config = getattr(module, "config", None)
    if getattr(config, "vision_config", None) is not None or getattr(config, "vq_config", None) is not None:
        return True
    names = code.arguments(type(module).forward)
    # Unified models accept pixel_values even where this very configuration has no vision part.
    return bool(rules.PIXEL_ARGUMENTS & names) and not hasattr(config, "vision_config")


def describe(module: nn.Module, stages: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What is unusual about these stages, in words."""
    notes = []
    vision, text = stages["vision_encoder"], stages["language_model"]
    if not vision:
        what = "no vision encoder: image patches go to the language model directly"
        notes.append(what if stages["projector"] else "takes no images: no vision encoder, no projector")
    elif not stages["projector"]:
        notes.append("no projector: the language model takes the vision encoder's output as it is")
    if len({path.rsplit(".", 1)[0] for path in vision}) > 1 or len(vision) > 1:
        notes.append(f"{len(vision)} modules make the vision encoder")
    if any(inside(v, t) for v in vision for t in text):
        notes.append("the vision encoder runs inside the language model's forward")
    if any(inside(p, v) for p in stages["projector"] for v in vision):
        notes.append("the projector lies inside the vision encoder; its time and parameters are its own")
    if len(text) > 1:
        notes.append("encoder-decoder: the text encoder runs once, in the prefill")
    if not stages["head"]:
        notes.append("no output embedding")
    elif any(inside(h, t) for h in stages["head"] for t in text):
        notes.append("the head runs inside the language model's forward")
    notes += [f"{path} belongs to no stage" for path in _large_others(module, stages)]
    return tuple(notes)


def _large_others(module: nn.Module, stages: Mapping[str, tuple[str, ...]], share: float = 0.01) -> list[str]:
    """Outermost modules with more than a share of all parameters in no stage; those that a stage shares are its own."""
    paths = [path for parts in stages.values() for path in parts]
    owners = _owners(module, paths, _values)
    least = share * sum(count for _, count in owners.values())
    found: list[str] = []
    for path, child in module.named_modules():
        free = [count for p in child.parameters() for owner, count in [owners[id(p)]] if not owner]
        holds_stage = any(inside(p, path) for p in paths)
        if path and sum(free) > least and not holds_stage and not any(inside(path, f) for f in found):
            found.append(path)
    return found


def inside(path: str, outer: str) -> bool:
    """Whether a dotted path is, or lies below, another."""
    return path == outer or path.startswith(outer + ".") or outer == ""


def _check_found(module: nn.Module, anatomy: Anatomy, given: Mapping[str, Sequence[str]]) -> None:
    if not anatomy.language_model and "language_model" not in given:
        raise AnatomyError(cannot_tell(module, "language_model"))
    said = {"vision_encoder", "projector"} & set(given)
    if not anatomy.vision_encoder and not anatomy.projector and not said and takes_images(module):
        raise AnatomyError(cannot_tell(module, "vision_encoder"))


def cannot_tell(module: nn.Module, stage: str) -> str:
    """The message of an :class:`AnatomyError`: what is missing, what to write, the module tree."""
    return (
        f"cannot tell which module of {type(module).__name__} is the {stage}; name it in the model's YAML:\n"
        "  anatomy:\n"
        "    vision_encoder: [PATH]   # [] where the model has none\n"
        "    projector: [PATH]\n"
        "    language_model: [PATH]\n"
        f"with paths from its module tree:\n{module_tree(module)}"
    )


def module_tree(module: nn.Module, *, depth: int = 3) -> str:
    """The module tree down to ``depth``, one module a line with its dotted path, class and parameters.

    Of a list of layers the first is shown.
    """
    lines: list[str] = []

    def walk(part: nn.Module, path: str, left: int) -> None:
        for name, child in part.named_children():
            here = f"{path}.{name}" if path else name
            listed = type(child).__name__ in ("ModuleList", "Sequential") and len(list(child.children())) > 1
            count = f" × {len(list(child.children()))}" if listed else ""
            lines.append(f"  {here}: {type(child).__name__}{count} ({code.size(child):,} parameters)")
            if left > 1 and not listed:
                walk(child, here, left - 1)

    walk(module, "", depth)
    return "\n".join(lines)


def stage_parameters(
    module: nn.Module, anatomy: Anatomy, size: Callable[[nn.Parameter], int] | None = None
) -> dict[str, int]:
    """Parameters of each stage, exclusive: each parameter belongs to the innermost stage module that holds it.

    A parameter that several modules share (a tied head) counts once, where the model meets it first.

    Args:
        size: what to add up of each parameter; None: the weights that it stands for.

    Returns:
        stage name to number of parameters for the stages that exist, then ``other`` and ``total``.
    """
    stage_of = {path: stage for stage, parts in anatomy.stages() for path in parts}
    counts = {stage: 0 for stage, parts in anatomy.stages() if parts} | {"other": 0}
    for path, count in _parameters_by_module(module, stage_of, size).items():
        counts[stage_of.get(path, "other")] += count
    counts["total"] = sum(counts.values())
    return counts


def _parameters_by_module(
    module: nn.Module, paths: Iterable[str], size: Callable[[nn.Parameter], int] | None = None
) -> dict[str, int]:
    """Parameters that each of the modules holds and none further in does; those that none holds under the path ''."""
    counts = dict.fromkeys(paths, 0) | {"": 0}
    for holder, count in _owners(module, counts, size or _values).values():
        counts[holder] += count
    return counts


def _owners(module: nn.Module, paths: Iterable[str], size: Callable[[nn.Parameter], int]) -> dict[int, tuple[str, int]]:
    """Parameter id to (path of the innermost of these modules that holds it or '', its size)."""
    known = set(paths)
    owners: dict[int, tuple[str, int]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        holder = name.rpartition(".")[0]
        while holder and holder not in known:
            holder = holder.rpartition(".")[0]
        # A shared parameter belongs to the first module of a stage that holds it, wherever else it hangs.
        if id(parameter) not in owners or not owners[id(parameter)][0]:
            owners[id(parameter)] = (holder, size(parameter))
    return owners


def _values(parameter: nn.Parameter) -> int:
    """Weights that a parameter stands for: bitsandbytes packs two of 4 bits into a byte and keeps their shape apart."""
    packed = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if packed is None else packed.shape.numel())


def anatomy_table(module: nn.Module, anatomy: Anatomy) -> list[AnatomyRow]:
    """The anatomy as rows: one a module, in the order in which a request meets the stages."""
    counts = _parameters_by_module(module, [path for _, parts in anatomy.stages() for path in parts])
    total = sum(counts.values())
    return [
        AnatomyRow(
            stage=stage,
            path=path,
            module_class=type(module.get_submodule(path)).__name__,
            parameters=counts[path],
            share=counts[path] / total if total else 0.0,
            rule=anatomy.how.get(stage, ""),
        )
        for stage, parts in anatomy.stages()
        for path in parts
    ]
