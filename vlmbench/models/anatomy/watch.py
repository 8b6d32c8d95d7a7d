"""Refine an anatomy by watching one real ``generate()``: which modules ran, when, how often, on what shapes.

Static rules (:mod:`vlmbench.models.anatomy.rules`) read what a model says of itself; a run shows what it does. Watching
settles a tower that is used past its ``forward``, a causal model whose wrapper is skipped, a tower for videos that no
image reaches, a connector that no name tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vlmbench.errors import AnatomyError
from vlmbench.models.anatomy import code, rules
from vlmbench.models.anatomy.find import cannot_tell, describe, find_anatomy, inside
from vlmbench.models.anatomy.override import OVERRIDE
from vlmbench.models.protocol import Anatomy

if TYPE_CHECKING:
    from torch import nn


# Record which modules of a model a run calls, in which order and on what shapes.

Shape = tuple[int, ...]


@dataclass(kw_only=True)
class Call:
    """One run of a module's ``forward``.

    Args:
        path: the module's dotted path.
        enter, leave: positions in the sequence of all entries and exits of the run.
        enter_ns, leave_ns: host clock (``perf_counter_ns``) there; on a GPU these are launch times.
        inputs: shape of every floating-point tensor among its arguments, by position or name.
        ids: shape of every integer tensor among its arguments, by position or name.
        outputs: shape of every tensor in what it returned, in order.
    """

    path: str
    enter: int
    leave: int = -1
    enter_ns: int = 0
    leave_ns: int = 0
    inputs: Mapping[str, Shape] = field(default_factory=dict)
    ids: Mapping[str, Shape] = field(default_factory=dict)
    outputs: tuple[Shape, ...] = ()

    @property
    def length(self) -> int | None:
        """Sequence length of what a language model was given; None where no argument looks like a sequence."""
        for name in ("inputs_embeds", "hidden_states", "input_ids", "decoder_input_ids", "decoder_inputs_embeds", "0"):
            shape = self.inputs.get(name) or self.ids.get(name)
            if shape and len(shape) > 1:
                return shape[1]
        return None


def record_calls(module: nn.Module, run: Callable[[], object]) -> list[Call]:
    """Every call of every module below the top one during ``run()``, in the order of entry.

    Modules inside a repeated layer (an item of a list of layers) are not followed; the layers themselves are. Hooks are
    removed whatever happens; a call that raises is not recorded.
    """
    calls: list[Call] = []
    clock = iter(range(1 << 62))
    with _hooks(module, calls, clock):
        run()
    return [call for call in calls if call.leave >= 0]


@contextmanager
def _hooks(module: nn.Module, calls: list[Call], clock: Iterator[int]) -> Iterator[None]:
    open_calls: dict[str, list[Call]] = {}
    handles: list[Any] = []

    def before(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            floats, ids = _tensors({**{str(i): a for i, a in enumerate(args)}, **kwargs})
            call = Call(path=path, enter=next(clock), enter_ns=time.perf_counter_ns(), inputs=floats, ids=ids)
            calls.append(call)
            open_calls.setdefault(path, []).append(call)

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> None:
            call = open_calls[path].pop()
            call.leave, call.leave_ns = next(clock), time.perf_counter_ns()
            call.outputs = tuple(tuple(t.shape) for t in _flat(output))

        return hook

    try:
        for path, part in _watched(module):
            handles.append(part.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(part.register_forward_hook(after(path), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watched(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of what is watched: everything but the insides of repeated layers."""
    layers = [
        path
        for path, part in module.named_modules()
        if type(part).__name__ == "ModuleList" and len(list(part.children())) > 1
    ]
    for path, part in module.named_modules():
        deep = any(path.startswith(layer + ".") and "." in path[len(layer) + 1 :] for layer in layers)
        if path and not deep:
            yield path, part


def _flat(value: Any) -> Iterator[Any]:
    """The tensors in nested tuples, lists and mappings, one after another."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _flat(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)


def _tensors(arguments: Mapping[str, Any]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Shapes of the first floating-point and of the first integer tensor of each argument."""
    floats: dict[str, Shape] = {}
    ids: dict[str, Shape] = {}
    for name, value in arguments.items():
        for tensor in _flat(value):
            (floats if tensor.is_floating_point() else ids).setdefault(name, tuple(tensor.shape))
    return floats, ids


def watch_anatomy(module: nn.Module, run: Callable[[], object], static: Anatomy | None = None) -> Anatomy:
    """Refine the anatomy of a model by watching one real ``generate()`` of an image and at least two new tokens.

    Args:
        run: makes one ``generate()`` call; it is called once.
        static: what the static rules found; by default they are asked here. Stages that an override settled stay.

    Returns:
        the anatomy with each stage's paths called in that run: parts that no call reached are replaced by the parts
        inside them that were called, or dropped with a note; parts that the rules missed are added.

    Raises:
        AnatomyError: nothing in the run behaves like a language model.
    """
    if static is None:
        try:
            static = find_anatomy(module)
        except AnatomyError:
            static = Anatomy()
    calls = record_calls(module, run)
    return _Refined(module=module, calls=calls, static=static).anatomy()


@dataclass(kw_only=True)
class _Refined:
    module: nn.Module
    calls: list[Call]
    static: Anatomy
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_path: dict[str, list[Call]] = {}
        for call in self.calls:
            self.by_path.setdefault(call.path, []).append(call)
        self.size = {path: code.size(self.module.get_submodule(path)) for path in self.by_path}

    def anatomy(self) -> Anatomy:
        head = self._kept("head") or self._head()
        text = self._text(head)
        self.text_start = min(call.enter for path in text for call in self.by_path[path])
        self.prefill_end = self.by_path[text[-1]][0].leave
        vision = self._vision(text)
        projector = self._projector(vision, text, head)
        text = (*self._text_encoders((*vision, *projector, *text, *head)), *text)
        stages = {"vision_encoder": vision, "projector": projector, "language_model": text, "head": head}
        said = {stage: getattr(self.static, stage) for stage, rule in self.static.how.items() if rule == OVERRIDE}
        stages |= said
        how = {stage: self._rule(stage, parts) for stage, parts in stages.items() if parts}
        notes = (*describe(self.module, stages), *self.notes, *self._habits(vision, projector))
        return replace(self.static, **stages, how=how, notes=notes)

    def _rule(self, stage: str, parts: tuple[str, ...]) -> str:
        if self.static.how.get(stage) == OVERRIDE:
            return OVERRIDE
        known = set(getattr(self.static, stage))
        said = self.static.how.get(stage, "")
        if set(parts) == known:
            return f"{said}, seen running"
        return f"{said}, corrected by watching" if known & set(parts) else "watching"

    # ------------------------------------------------------------------------------------------- stages

    def _kept(self, stage: str) -> tuple[str, ...]:
        """The static parts that were called, the uncalled ones replaced by what was called inside them."""
        kept: list[str] = []
        for path in getattr(self.static, stage):
            parts = [path] if path in self.by_path else self._outermost_called_in(path)
            note = f"{path} was not called"
            if not parts and note not in self.notes:
                self.notes.append(note)
            kept += parts
        return tuple(dict.fromkeys(kept))

    def _outermost_called_in(self, path: str) -> list[str]:
        below = [p for p in self.by_path if inside(p, path)]
        return [p for p in below if not any(o != p and inside(p, o) for o in below)]

    def _text(self, head: tuple[str, ...]) -> tuple[str, ...]:
        kept = [path for path in self.static.language_model if path in self.by_path]
        if kept and self.static.language_model[-1] == kept[-1] and len(self.by_path[kept[-1]]) > 1:
            return tuple(kept)
        # The smallest module that holds most of what the decode steps run.
        steppers = [p for p in self.by_path if self._decodes(p) and not any(inside(h, p) for h in head)]
        if not steppers:
            steppers = [p for p in self.by_path if self._decodes(p)]
        if not steppers:
            raise AnatomyError(cannot_tell(self.module, "language_model"))
        weight = self._weight_in_later_steps()
        largest = max(weight[p] for p in steppers)
        best = max((p for p in steppers if weight[p] >= 0.9 * largest), key=lambda p: p.count("."))
        return (best,)

    def _weight_in_later_steps(self) -> dict[str, int]:
        """Parameters inside each module that calls after the first ones use: a tower inside it does not count."""
        often = [path for path, calls in self.by_path.items() if len(calls) > 1]
        inner = [path for path in often if not any(o != path and inside(o, path) for o in often)]
        return {path: sum(self.size[i] for i in inner if inside(i, path)) for path in self.by_path}

    def _head(self) -> tuple[str, ...]:
        """The innermost module that gives one number for each word of the vocabulary, again and again."""
        config = getattr(self.module, "config", None)
        text = getattr(config, "get_text_config", lambda **_: config)(decoder=True)
        words = getattr(text, "vocab_size", None)
        wide = [
            p
            for p, calls in self.by_path.items()
            if len(calls) > 1 and any(s[-1:] == (words,) for s in calls[0].outputs)
        ]
        return tuple(p for p in wide if self.size[p] and not any(o != p and inside(o, p) for o in wide))[:1]

    def _decodes(self, path: str) -> bool:
        """Called with a sequence first, and again with fewer positions."""
        lengths = [call.length for call in self.by_path[path]]
        first = lengths[0]
        return len(lengths) > 1 and first is not None and all(n is not None and n <= first for n in lengths[1:])

    def _text_encoders(self, stages: tuple[str, ...]) -> tuple[str, ...]:
        """Models with layers that read the sequence before the decoder does and that no rule has named."""
        found: list[str] = []
        for call in self.calls:
            apart = not any(inside(s, call.path) or inside(call.path, s) for s in (*stages, *found))
            named = any(rules.FOREIGN_NAME.search(part) for part in call.path.split("."))
            reads = {"inputs_embeds", "input_ids"} & {*call.inputs, *call.ids}
            early = call.leave <= self.text_start
            if apart and reads and not named and early and rules.has_blocks(self.module.get_submodule(call.path)):
                found.append(call.path)
        return tuple(found)

    def _eats_pixels(self, text: tuple[str, ...]) -> list[str]:
        """Outermost modules that were given the pixels before the language model answered."""
        shapes = {shape for call in self.calls for name, shape in call.inputs.items() if name in rules.PIXEL_ARGUMENTS}
        eats = [
            call.path
            for call in self.calls
            if call.leave < self.prefill_end
            and shapes & {*call.inputs.values()}
            and not any(inside(t, call.path) for t in text)
        ]
        return [p for p in dict.fromkeys(eats) if not any(o != p and inside(p, o) for o in eats)]

    def _vision(self, text: tuple[str, ...]) -> tuple[str, ...]:
        kept = self._kept("vision_encoder")
        if kept or self.static.projector:
            return kept
        # Pixels may come without a name: then the first thing with layers that reads numbers, not token ids.
        early = (c for c in self.calls if c.leave < self.text_start and c.inputs and "input_ids" not in c.ids)
        first = [c.path for c in early]
        roots = [p for p in dict.fromkeys(first) if not any(o != p and inside(p, o) for o in first)]
        found = self._eats_pixels(text) or [p for p in roots if not any(inside(t, p) for t in text)]
        return tuple(p for p in found if rules.has_blocks(self.module.get_submodule(p)))

    def _projector(self, vision: tuple[str, ...], text: tuple[str, ...], head: tuple[str, ...]) -> tuple[str, ...]:
        found = [p for p in self._kept("projector") if not self._feeds_layers(p, vision, text)]
        if not vision and not found:
            found = self._eats_pixels(text)
        if vision and not any(not inside(f, v) for f in found for v in vision):
            found += [p for p in self._between(vision, text, head) if p not in found]
        if vision and not found:
            found += self._widening(vision, text)
        order = {path: self.by_path[path][0].enter for path in found}
        return tuple(sorted(found, key=order.__getitem__))

    def _feeds_layers(self, path: str, vision: tuple[str, ...], text: tuple[str, ...]) -> bool:
        """A part inside a tower that runs between its layers and does not give the language model's width."""
        call = self.by_path[path][0]
        around = [c for v in vision if inside(path, v) for c in self.by_path[v] if c.enter <= call.enter < c.leave]
        between = any(
            call.leave < c.enter < tower.leave
            for tower in around
            for p, cs in self.by_path.items()
            if inside(p, tower.path) and _is_layer(p) and not inside(p, path)
            for c in cs
        )
        return between and bool(call.outputs) and call.outputs[0][-1] != self._text_width(text)

    def _text_width(self, text: tuple[str, ...]) -> int | None:
        config = getattr(self.module.get_submodule(text[-1]), "config", None)
        inputs = self.by_path[text[-1]][0].inputs
        embeds = inputs.get("inputs_embeds") or inputs.get("hidden_states")
        return embeds[-1] if embeds else getattr(config, "hidden_size", None)

    def _between(self, vision: tuple[str, ...], text: tuple[str, ...], head: tuple[str, ...]) -> list[str]:
        """Outermost modules called after the first tower began and before the language model did, on features."""
        stages = (*vision, *text, *head)
        start = min(self.by_path[v][0].enter for v in vision)
        wrapped = any(inside(v, t) for v in vision for t in text)
        end = self.prefill_end if wrapped else self.text_start
        roots: list[str] = []
        for call in self.calls:
            outside = not any(
                inside(s, call.path) or inside(call.path, s) for s in stages if s not in text or not wrapped
            )
            if (
                not start < call.enter < end
                or not outside
                or not call.inputs
                or any(inside(call.path, r) for r in roots)
            ):
                continue
            part = self.module.get_submodule(call.path)
            named = rules.PROJECTOR_NAME.search(call.path.rsplit(".", 1)[-1])
            learned = self.size[call.path] and not code.is_norm_only(part) and not wrapped
            if (named or learned) and not rules.FOREIGN_NAME.search(call.path.rsplit(".", 1)[-1]):
                roots.append(call.path)
        return list(dict.fromkeys(roots))

    def _widening(self, vision: tuple[str, ...], text: tuple[str, ...]) -> list[str]:
        """The last part inside a tower that turns its width into the language model's, where the two differ."""
        wanted = self._text_width(text)
        for tower in vision:
            inner = [c for p, cs in self.by_path.items() if p != tower and inside(p, tower) for c in cs]
            main = rules.main_layers(self.module.get_submodule(tower), tower)
            layers = [c for c in inner if c.path.startswith(main)]
            last_layer = max((c.enter for c in layers), default=0)
            changes = [
                c
                for c in inner
                if c.enter >= last_layer
                and c.inputs
                and c.outputs
                and c.outputs[0][-1] == wanted
                and all(shape[-1] != wanted for shape in c.inputs.values())
            ]
            if changes:
                return [min(changes, key=lambda c: (c.path.count("."), -c.leave)).path]
        return []

    def _habits(self, vision: tuple[str, ...], projector: tuple[str, ...]) -> Iterable[str]:
        """What a timeline must know: parts that run several times, or in later steps."""
        for path in vision:
            before = sum(call.enter < self.prefill_end for call in self.by_path[path])
            if before > 1:
                yield f"{path} runs {before} times in the prefill"
        for path in (*vision, *projector):
            later = sum(call.enter > self.prefill_end for call in self.by_path[path])
            if later:
                yield f"{path} runs in decode steps too"


def _is_layer(path: str) -> bool:
    """Whether a path names an item of a list."""
    return path.rsplit(".", 1)[-1].isdigit()
