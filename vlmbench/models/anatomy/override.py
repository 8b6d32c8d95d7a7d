"""What a user says of a model's stages: paths that exist, each module in one stage, none out of its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmbench.errors import AnatomyError
from vlmbench.schema import MODEL_PARTS

if TYPE_CHECKING:
    from torch import nn


OVERRIDE = "override"  # the rule's name where the user settled a stage
STAGES = tuple(part.name for part in MODEL_PARTS)

Found = Mapping[str, tuple[tuple[str, ...], str]]
"""Stage to (dotted paths of its modules, the rule that found them)."""

# (inner, outer) that rules find where a model is built so; others never are
_IN_TOWER, _HEAD_IN_TEXT = ("projector", "vision_encoder"), ("head", "language_model")
_IN_TEXT = (("vision_encoder", "language_model"), ("projector", "language_model"))


def check_override(module: nn.Module, override: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The override with its paths as tuples; a list of modules stands for its items, since it has no ``forward``.

    Raises:
        AnatomyError: an unknown stage, a path that names no module (the message lists near names), or a module that is
            named twice, by itself or within another.
    """
    known = {path: part for path, part in module.named_modules(remove_duplicate=False) if path}
    checked: dict[str, tuple[str, ...]] = {}
    for stage, parts in override.items():
        if stage not in STAGES:
            raise AnatomyError(f"anatomy override: '{stage}' must be one of {', '.join(STAGES)}")
        names = (parts,) if isinstance(parts, str) else tuple(parts)
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=5, cutoff=0.4)
                near += [path for path in known if path.endswith("." + name.rsplit(".", 1)[-1])][:3]
                hint = ", ".join(dict.fromkeys(near)) or ", ".join(n for n, _ in module.named_children())
                raise AnatomyError(f"anatomy override: '{stage}' names '{name}', which is no module; near: {hint}")
        items = [
            [f"{name}.{item}" for item, _ in known[name].named_children()]
            if type(known[name]).__name__ == "ModuleList"
            else [name]
            for name in names
        ]
        checked[stage] = tuple(path for paths in items for path in paths)
        _check_once(stage, [(path, known[path]) for path in checked[stage]])
    return checked


def _check_once(stage: str, parts: Sequence[tuple[str, nn.Module]]) -> None:
    for index, (path, part) in enumerate(parts):
        for other, another in [*parts[:index], *parts[index + 1 :]]:
            if _holds(another, part):
                raise AnatomyError(
                    f"anatomy override: '{stage}' names '{path}' twice, by itself and with '{other}'; leave one out"
                )


def check_places(module: nn.Module, given: Mapping[str, Sequence[str]], found: Found, plain: Found) -> None:
    """Refuse an override after which one module would count in two stages, or in one where it does not belong.

    Args:
        found: all stages, the override's and what the rules find beside it.
        plain: what the rules find without the override; where the override says nothing of a stage, this is believed.

    Raises:
        AnatomyError: the message names the module, both stages, and what is allowed.
    """
    places = _Places(module=module, given=given, plain=plain)
    for stage, parts in given.items():
        for path in parts:
            for other, (paths, rule) in places.beside(stage, found):
                for other_path in paths:
                    if how := places.conflict((stage, path), (other, other_path)):
                        raise AnatomyError(_words((stage, path), how, (other, other_path), rule))


@dataclass(frozen=True, kw_only=True)
class _Places:
    module: nn.Module
    given: Mapping[str, Sequence[str]]
    plain: Found

    def beside(self, stage: str, found: Found) -> Iterator[tuple[str, tuple[tuple[str, ...], str]]]:
        """The other stages as they will be, then as the rules alone see those that the override leaves open."""
        yield from ((other, what) for other, what in found.items() if other != stage)
        for other, what in self.plain.items():
            # What makes words of hidden states is no part of seeing, even where the override wants no head.
            never = other == "head" and stage in _IN_TOWER and not self.given.get("head")
            if other != stage and (other not in self.given or never):
                yield other, what

    def conflict(self, one: tuple[str, str], other: tuple[str, str]) -> str:
        """How the modules of two stages lie in each other's way, in words; empty where they do not."""
        first, second = (self.module.get_submodule(path) for _, path in (one, other))
        if first is second:
            return "is"
        if _holds(first, second) and not self._may_lie(inner=other, outer=one):
            return "holds"
        if _holds(second, first) and not self._may_lie(inner=one, outer=other):
            return "lies inside"
        return ""

    def _may_lie(self, *, inner: tuple[str, str], outer: tuple[str, str]) -> bool:
        pair = (inner[0], outer[0])
        said = {inner[0], outer[0]} <= set(self.given)  # both named: it is meant
        if pair == _IN_TOWER:
            return True
        if pair == _HEAD_IN_TEXT:
            part = self.module.get_submodule(inner[1])
            return said or any(self.module.get_submodule(path) is part for path in self.plain["head"][0])
        return pair in _IN_TEXT and (said or self._nested_by_rule(*pair))

    def _nested_by_rule(self, inner: str, outer: str) -> bool:
        """Whether this model is built so: the rules themselves find one inside the other."""
        within = [self.module.get_submodule(path) for path in self.plain[inner][0]]
        around = [self.module.get_submodule(path) for path in self.plain[outer][0]]
        return any(_holds(o, i) for o in around for i in within)


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    """Whether a module is, or has somewhere below it, another."""
    return any(part is inner for part in outer.modules())


def _words(one: tuple[str, str], how: str, other: tuple[str, str], rule: str) -> str:
    (stage, path), (second, other_path) = one, other
    by = "named in the override, too" if rule == OVERRIDE else f"found by {rule}"
    where = f"is the {second} ({by})" if how == "is" else f"{how} the {second} '{other_path}' ({by})"
    remedy = "Name each module once" if rule == OVERRIDE else f"If the rule is wrong, name the {second}, too"
    return (
        f"anatomy override: '{stage}' names '{path}', which {where}; a module belongs to one stage, and only "
        f"a projector may lie inside a vision encoder, a head inside a language model.\n{remedy}; experiment=anatomy "
        "without the override shows what the rules find."
    )
