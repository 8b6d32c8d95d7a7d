"""Stages of the prefill captured one by one: each module's ``forward`` is replaced, during a run, by a replay.

The module's own ``__call__`` stays, so forward hooks fire around a replay as they do around eager code: the timeline's
marks stand outside the graphs and need no knowledge of them. A projector inside a tower splits the tower's graph.

Code that reads a grid or a mask on the host is captured for their contents (:mod:`vlmbench.engines.constants`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from vlmbench.engines.attention import attention_kernels
from vlmbench.engines.capture import Play, Recorder
from vlmbench.engines.compiling import Compiler
from vlmbench.engines.constants import Constants, contents, small_integers
from vlmbench.engines.static_cache import FixedCache
from vlmbench.errors import ModelError, first_line

_Signature = tuple[Any, ...]

_TOLERANCE = 0.04  # of an answer's norm: rounding in bfloat16 through all layers is less, a wrong order more


@dataclass(kw_only=True)
class _Captured:
    """One input signature of a stage.

    Args:
        spec: of (args, kwargs).
        static: the leaves of (args, kwargs); tensors among them are refilled before each replay.
        play: runs the captured forward; None where it cannot be captured.
        kernels: attention operators that its forward ran, with their numbers.
        why_not: the reason.
        stored: of each cache among the inputs, what its layers held afterwards.
        reads: what its code reads besides, kept alive with it.
        held: leaves whose contents it was captured for.
        contents: these.
    """

    spec: TreeSpec
    static: list[Any]
    play: Play | None
    kernels: Mapping[str, int]
    why_not: str | None = None
    stored: Sequence[tuple[FixedCache, list[int]]] = ()
    reads: object = None
    held: Sequence[int] = ()
    contents: bytes = b""

    def serves(self, spec: TreeSpec, leaves: Sequence[Any]) -> bool:
        """Whether it was captured for such inputs; where contents matter, they are looked at."""
        return spec == self.spec and (not self.held or contents(leaves, self.held) == self.contents)


@dataclass(kw_only=True)
class Stage:
    """One module of a stage.

    Args:
        name: ``vision_encoder``, ``projector`` or ``language_model``.
        module: the module.
        variant: how a method changes its code; graphs of the code as it is have None.
        compiler: compiles its code before it is captured, for each signature; None leaves it as it is.
    """

    name: str
    module: torch.nn.Module
    variant: Hashable = None
    compiler: Compiler | None = None
    captured: dict[_Signature, list[_Captured]] = field(default_factory=dict)
    part: tuple[Play, Any] | None = None  # set while an outer stage's replay calls this module


@dataclass(kw_only=True)
class StageGraphs:
    """The stages of one model.

    Args:
        recorder: captures.
        stages: outer modules and the modules inside them, in any order.
        anew: called with a stage's name before each run of its code while it is captured, and after the last: a method
            that changes the code makes ready for a first run, and says which of its tensors the code then reads.
        as_python: run the stages' code in place of replays.
    """

    recorder: Recorder
    stages: Sequence[Stage]
    anew: Callable[[str], object] | None = None
    as_python: bool = False
    learning: bool = False
    missed: int = 0
    _inside: bool = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replays instead of forwards, where a signature is known; with ``learning``, unknown ones are captured."""
        with ExitStack() as stack:
            for stage in self.stages:
                stack.enter_context(replaced_forward(stage.module, self._forward(stage)))
            yield

    @contextmanager
    def learn(self) -> Iterator[None]:
        """Capture what is new within."""
        self.learning = True
        try:
            with self.installed():
                yield
        finally:
            self.learning = False

    def forget(self, name: str) -> None:
        """Drop the graphs of a stage: what they read or write has moved."""
        for stage in self.stages:
            if stage.name == name:
                stage.captured.clear()

    @property
    def facts(self) -> Mapping[str, Any]:
        """For each stage: how many signatures are captured, how many of them for the contents of small integer inputs
        too, and why others are not captured.
        """
        facts: dict[str, Any] = {}
        for stage in self.stages:
            entries = [entry for same in stage.captured.values() for entry in same]
            found = facts.setdefault(stage.name, {"graphs": 0, "of_contents": 0, "eager": [], "attention": []})
            found["attention"] = sorted({*found["attention"], *(name for e in entries for name in e.kernels)})
            found["graphs"] += sum(entry.play is not None for entry in entries)
            found["of_contents"] += sum(bool(entry.held) for entry in entries)
            found["eager"] = sorted({*found["eager"], *(e.why_not for e in entries if e.why_not is not None)})
        return facts

    @property
    def by_contents(self) -> bool:
        """Whether a stage is captured for the contents of inputs."""
        return any(e.held for stage in self.stages for same in stage.captured.values() for e in same)

    def _forward(self, stage: Stage) -> Callable[..., Any]:
        original = stage.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if stage.part is not None:
                (play, outputs), stage.part = stage.part, None
                play()
                return outputs
            if self.recorder.recording:
                return self._as_part(stage, original, args, kwargs)
            if self._inside:
                return original(*args, **kwargs)
            return self._run(stage, original, args, kwargs)

        return forward

    def _run(self, stage: Stage, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.as_python:
            return original(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        signature = (stage.variant, *_signature(leaves))
        same = stage.captured.setdefault(signature, [])
        entry = next((e for e in same if e.serves(spec, leaves)), None)
        if entry is None:
            if not self.learning:
                self.missed += 1
                return original(*args, **kwargs)
            entry = self._capture(stage, original, leaves, spec)
            self._anew(stage)
            same.append(entry)
        if entry.play is None:
            return original(*args, **kwargs)
        for at, (static, leaf) in enumerate(zip(entry.static, leaves, strict=True)):
            if static is not leaf and isinstance(leaf, torch.Tensor) and at not in entry.held:
                static.copy_(leaf)
        answer = entry.play()
        for cache, stored in entry.stored:
            cache.stored[:] = stored
        return answer

    def _capture(self, stage: Stage, original: Callable[..., Any], leaves: list[Any], spec: TreeSpec) -> _Captured:
        if stage.compiler is not None and stage.variant is not None:
            _refuse_compiled(stage, "a method changes its code")
        static = [
            leaf.clone(memory_format=torch.contiguous_format) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in leaves
        ]
        args, kwargs = tree_unflatten(static, spec)

        def own() -> Any:
            return original(*args, **kwargs)

        held: Sequence[int] = ()
        self._inside = True
        try:
            with attention_kernels() as kernels:
                self._anew(stage)
                own()
            tried = self._tried(stage, own if stage.compiler is None else stage.compiler(own))
            if isinstance(tried, str) and stage.compiler is None and (held := small_integers(static)):
                tried = self._tried_for_contents(stage, own, static, held)
        except torch.OutOfMemoryError:  # says nothing about the stage's code: the run does not fit
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:  # it ran uncaptured before
            tried, kernels = f"its capture failed: {first_line(error)}", {}
        finally:
            self._inside = False
        stored = [(leaf, list(leaf.stored)) for leaf in leaves if isinstance(leaf, FixedCache)]
        if isinstance(tried, str):
            if stage.compiler is not None:
                _refuse_compiled(stage, tried)
            return _Captured(spec=spec, static=[], play=None, kernels=kernels, why_not=tried)
        play, reads = tried
        captured = partial(
            _Captured,
            spec=spec,
            static=static,
            kernels=kernels,
            stored=stored,
            reads=reads,
            held=held,
            contents=contents(static, held),
        )
        if not self.recorder.captures:
            return captured(play=self._alone(play))
        # What a caller does to the answer (adding a field, say) must not reach the next replay's answer.
        outputs, shape = tree_flatten(play())

        def fresh() -> Any:
            play()
            return tree_unflatten(list(outputs), shape)

        return captured(play=fresh)

    def _tried(self, stage: Stage, work: Callable[[], Any]) -> tuple[Play, object] | str:
        """What runs captured work again, with what it reads besides; or why it cannot be captured."""

        def first() -> Any:
            self._anew(stage)
            return work()

        why_not = self.recorder.obstacle(first)
        if why_not is not None:
            return why_not
        reads = self._anew(stage)
        return self.recorder.record(work), reads

    def _tried_for_contents(
        self, stage: Stage, own: Callable[[], Any], static: Sequence[Any], held: Sequence[int]
    ) -> tuple[Play, object] | str:
        """As above, with all that the code makes of some inputs alone as it is for their contents."""
        constants = Constants(roots=[static[at] for at in held])
        self._anew(stage)
        constants.learn(own)
        tried = self._tried(stage, constants.handed_out(own))
        if isinstance(tried, str):
            return tried
        play, reads = tried
        return self._differs(stage, static, play, own) or (play, (reads, constants))

    def _differs(self, stage: Stage, static: Sequence[Any], play: Play, own: Callable[[], Any]) -> str | None:
        """Let a replay answer as the code does, for the inputs that it was captured with and for others.

        What was wrongly taken for a constant would be seen here. Kernels may round differently when they run again.
        """
        for sign in (1, -1):
            for leaf in static:
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                    leaf.mul_(sign)
            got = [leaf.clone() for leaf in tree_flatten(play())[0] if isinstance(leaf, torch.Tensor)]
            self._anew(stage)
            want = [leaf for leaf in tree_flatten(own())[0] if isinstance(leaf, torch.Tensor)]
            self._anew(stage)
            for one, other in zip(got, want, strict=True):
                if torch.equal(one, other):
                    continue
                off = float((one.double() - other.double()).norm() / other.double().norm())
                eps = torch.finfo(other.dtype).eps if other.is_floating_point() else 0.0
                if not off <= min(_TOLERANCE, 1000 * eps):
                    return f"its replay is off from its code's answer by {100 * off:.2g} %"
        return None

    def _anew(self, stage: Stage) -> object:
        return None if self.anew is None else self.anew(stage.name)

    def _alone(self, play: Play) -> Play:
        """Run uncaptured work without looking at the stages inside it as stages of their own."""

        def alone() -> Any:
            self._inside = True
            try:
                return play()
            finally:
                self._inside = False

        return alone

    def _as_part(self, stage: Stage, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Within the capture of an outer stage: a graph of its own, and the module's hooks around it in replays."""
        held: list[Any] = []

        def again(play: Play) -> None:
            stage.part = (play, held[0])
            stage.module(*args, **kwargs)

        held.append(self.recorder.nested(lambda: original(*args, **kwargs), again))
        return held[0]


def _refuse_compiled(stage: Stage, why_not: str) -> NoReturn:
    name = type(stage.module).__name__
    raise ModelError(f"{name} cannot be compiled and captured: {why_not}.\nTake runtime.prefill_compile=false.")


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another ``forward`` on one module, hooks around it; what stood on the instance before stands there afterwards."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def _signature(leaves: Sequence[Any]) -> _Signature:
    """What a graph fixes of its inputs: shapes, types, devices, and every value that is no tensor."""
    return tuple(
        (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else _plain(leaf)
        for leaf in leaves
    )


def _plain(leaf: Any) -> Any:
    return leaf if isinstance(leaf, bool | int | float | str | None | torch.dtype | torch.device) else id(leaf)
