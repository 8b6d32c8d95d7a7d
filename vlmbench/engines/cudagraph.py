"""``runtime=cudagraph``: a generation loop of our own for transformers models, captured in CUDA graphs.

A request runs as: set-up (the model's own positions and masks), prefill (the model's own forward, whose vision tower,
projector and decoder are replays of graphs captured for these shapes), then one replay a token of a decode step that
was captured once for each length of the cache. Tokens are those of greedy ``generate()``. Capturing is done before any
clock starts (:meth:`GraphLoop.ready`); without CUDA the same loop runs uncaptured.
"""

# transformers' annotations are incomplete and differ between the versions supported here.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vlmbench.engines.capture import Play, Recorder, recorder_for
from vlmbench.engines.compiling import MODE, Compiler, compiler_for
from vlmbench.engines.decode import Choice, DecodeState, Step, step_template
from vlmbench.engines.refusals import decoder_layers, refuse, refuse_unfit
from vlmbench.engines.stage_graphs import Stage, StageGraphs, replaced_forward
from vlmbench.engines.static_cache import Spans, spans_of, window_for, windows, windows_after
from vlmbench.errors import (
    DeviceError,
    MeasurementError,
    ModelError,
    UnfitModelError,
    UnreachablePointError,
    first_line,
)
from vlmbench.models.filled_cache import LAYOUT_TOKENS, first_tokens
from vlmbench.models.masks import take_made_masks

if TYPE_CHECKING:
    from vlmbench.models.protocol import Anatomy, InReplays, Prepared
    from vlmbench.models.runtime import Runtime
    from vlmbench.models.spec import ModelSpec
    from vlmbench.models.transformers_model import TransformersModel
    from vlmbench.request import Output

_HANDED_APART = frozenset({"input_ids", "attention_mask", "position_ids"})


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """How the loop captures; the keys of ``conf/runtime/cudagraph.yaml``.

    Args:
        cache_step: windows of the decode's attention are multiples of this many tokens; one graph is captured for
            each that a request needs.
        capture: stages of the prefill that are captured: ``vision_encoder``, ``projector``, ``language_model``. The
            decode step always is.
        decode_compile: compile the decode step (``max-autotune-no-cudagraphs``) before it is captured: about a minute
            and a half for each window, once.
        prefill_compile: compile the decoder's prefill in the same way, for each length of a prompt.
    """

    cache_step: int = 256
    capture: tuple[str, ...] = ("vision_encoder", "projector", "language_model")
    decode_compile: bool = False
    prefill_compile: bool = False

    def __post_init__(self) -> None:
        if self.cache_step < 1:
            raise ValueError(f"'cache_step' must be 1 or more (got {self.cache_step})")
        known = ("vision_encoder", "projector", "language_model")
        if unknown := sorted(set(self.capture) - set(known)):
            raise ValueError(f"'capture' must name stages among {', '.join(known)} (got {unknown})")
        if self.prefill_compile and "language_model" not in self.capture:
            raise ValueError("'prefill_compile' needs 'language_model' in 'capture'")


@dataclass(kw_only=True)
class _Report:
    """What capturing took and gave, for the provenance."""

    seconds: float = 0.0
    windows: set[tuple[int, ...]] = field(default_factory=set)  # (rows, slots, slots of layers with fewer tokens …)
    shapes: int = 0
    decode_attention: set[str] = field(default_factory=set)


@dataclass(kw_only=True)
class GraphLoop:
    """The loop of one loaded model.

    Args:
        module: the top-level model, on one device, in eval mode.
        anatomy: which module is which stage.
        device: of the model.
        settings: what is captured.
        recorder: captures; CUDA graphs where the device has them.

    Raises:
        ModelError: the model cannot be driven by this loop; the reason is named.
    """

    module: Any
    anatomy: Anatomy
    device: torch.device
    settings: GraphSettings = field(default_factory=GraphSettings)
    recorder: Recorder = None  # type: ignore[assignment]  # made in __post_init__ where absent
    _graphs: StageGraphs = field(init=False)
    _layers: int = field(init=False)
    _states: dict[int, DecodeState] = field(init=False, default_factory=dict)
    _steps: dict[tuple[int, Spans, bool], tuple[Step, Play]] = field(init=False, default_factory=dict)
    _ready: set[tuple[Any, ...]] = field(init=False, default_factory=set)
    _report: _Report = field(init=False, default_factory=_Report)
    _capacity: int = field(init=False, default=0)
    _method: InReplays | None = field(init=False, default=None)
    _left: list[int] | None = field(init=False, default=None)
    _changed: tuple[Any, ...] = field(init=False, default=())
    _compiler: Compiler | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        refuse_unfit(self.module)
        take_made_masks(self.module)
        self._layers = decoder_layers(self.module)
        self.recorder = self.recorder or recorder_for(self.device)
        of_step, of_prefill = (
            compiler_for(getattr(self.settings, name), self.device, name=name)  # refused now, not in the first capture
            for name in ("decode_compile", "prefill_compile")
        )
        self._compiler = of_step
        stages = [
            Stage(
                name=name,
                module=self.module.get_submodule(path),
                compiler=of_prefill if name == "language_model" else None,
            )
            for name, paths in self.anatomy.stages()
            if name in self.settings.capture
            for path in paths
            if self.module.get_submodule(path) is not self.module
        ]
        self._graphs = StageGraphs(recorder=self.recorder, stages=stages)
        takes = inspect.signature(type(self.module).forward).parameters
        self._takes_positions = "position_ids" in takes
        self._keeps_logits = "logits_to_keep" in takes
        self._forward = self.module.forward
        self._decoder_config = self.module.config.get_text_config(decoder=True)
        config = self.module.generation_config
        eos = config.eos_token_id
        ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
        self._eos = torch.tensor(ids, dtype=torch.int64, device=self.device)
        self._pad = config.pad_token_id if config.pad_token_id is not None else (ids or [0])[0]

    # -------------------------------------------------------------------------------------------- before the clock

    def ready(self, prepared: Prepared, inputs: Callable[[], Mapping[str, Any]]) -> float:
        """Capture what a request needs and is not captured yet; the time that took, ms (0.0: nothing was captured).

        Args:
            prepared: the request, whose shapes and output count.
            inputs: gives its inputs on the device; called only where something must be captured.

        Raises:
            UnfitModelError: nothing was captured so far, so it is the model that cannot be.
            ModelError: this request, or this method, cannot be captured.
        """
        try:
            if prepared.cached is not None:
                return self._ready_over_cache(prepared, inputs)
            return self._ready_from_start(prepared, inputs)
        except ModelError as error:
            if self._report.seconds or self._method is not None:
                raise
            raise UnfitModelError(str(error)) from error

    def _ready_from_start(self, prepared: Prepared, inputs: Callable[[], Mapping[str, Any]]) -> float:
        """Capture prefill and steps of a request from an empty cache; the time that took, ms."""
        output, key = prepared.output, self._key(prepared)
        if "input_ids" not in prepared.inputs:
            refuse(self.module, f"its inputs are {', '.join(prepared.inputs)}, without input_ids")
        batch, prompt = prepared.inputs["input_ids"].shape
        held = self._held(prompt)
        if key in self._ready and self._has_steps(batch, held, output.max_new_tokens - 1, forced=output.forced):
            return 0.0
        begin = time.perf_counter()
        with torch.no_grad():
            self._capture(inputs(), prepared)
        # Now it is known whether contents matter; of inputs on the device only the shapes are looked at.
        self._ready |= {key, self._key(prepared), self._key(prepared, cut=False)}
        took = time.perf_counter() - begin
        self._report.seconds += took
        self._report.shapes += 1
        return took * 1e3

    def _ready_over_cache(self, prepared: Prepared, inputs: Callable[[], Mapping[str, Any]]) -> float:
        """Capture the steps over a cache of random keys, and fill it; the time that the capture took, ms."""
        held, steps, forced, took = cached_tokens(prepared), prepared.output.max_new_tokens, prepared.output.forced, 0.0
        batch = prepared.inputs["input_ids"].shape[0]
        if not self._has_steps(batch, ((0, held),), steps, forced=forced):
            begin = time.perf_counter()
            with torch.no_grad():
                state = self._state(batch, held + 1 + steps)
                # A few tokens make the cache, whatever the length is.
                few = first_tokens(inputs(), LAYOUT_TOKENS)
                try:
                    kwargs, _ = self._prefill(few, state, forced=forced)
                    self._capture_steps(state, self._windows(((0, held),), steps), kwargs, forced=forced)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    name = type(self.module).__name__
                    raise UnreachablePointError(
                        f"runtime=cudagraph cannot run {name} on a text without an image ({first_line(error)}); "
                        "kv_length needs runtime=eager"
                    ) from error
            took = time.perf_counter() - begin
            self._report.seconds += took
        with torch.no_grad():
            self._states[batch].cache.fill_random(held)
        return took * 1e3

    def _has_steps(self, batch: int, held: Spans, steps: int, *, forced: bool) -> bool:
        """Whether so many decode steps after ``held`` tokens are captured."""
        state = self._states.get(batch)
        return (
            state is not None
            and state.capacity > held[0][1] + steps
            and all((batch, needed, forced) in self._steps for needed in self._windows(held, steps))
        )

    def _windows(self, held: Spans, steps: int) -> Iterator[Spans]:
        return windows(held, steps, step=self.settings.cache_step)

    @contextmanager
    def under(self, method: InReplays) -> Iterator[None]:
        """Run requests under a method: with graphs of its own where it changes what a stage does or is given.

        Graphs of stages that it leaves as they are, and steps of the decode over as many slots, are shared.

        Args:
            method: attached, and begun with the request that runs within; after a capture, which uses its hooks up, it
                begins again.
        """
        inside = method.inside()
        self._method, self._graphs.anew = method, method.anew
        self._left = method.left()
        self._changed = (*self._left, *sorted(inside.items()))  # asked now: requests within run against a clock
        for stage in self._graphs.stages:
            stage.variant = inside.get(stage.name)
        try:
            yield
        finally:
            self._method, self._graphs.anew, self._left, self._changed = None, None, None, ()
            for stage in self._graphs.stages:
                stage.variant = None

    @contextmanager
    def python(self) -> Iterator[None]:
        """Run the code that was captured, as Python, for what can be seen only there (which kernels are asked for)."""
        self._graphs.as_python = True
        try:
            yield
        finally:
            self._graphs.as_python = False

    def _key(self, prepared: Prepared, *, cut: bool = True) -> tuple[Any, ...]:
        """What a capture of the prefill depends on: the shapes of all inputs, what a method does with them, and, where
        a stage is captured for that, how the images are cut.
        """
        of_contents = prepared.cut.items() if cut and self._graphs.by_contents else ()
        return (*_shapes(prepared.inputs), *of_contents, *self._changed)

    def _held(self, prompt: int) -> Spans:
        """Tokens of the prompt that the layers store."""
        return ((0, prompt),) if self._left is None else spans_of(self._left)

    def _begin_again(self, prepared: Prepared) -> None:
        if self._method is not None:
            self._method.begin(prepared)

    def _capture(self, inputs: Mapping[str, Any], prepared: Prepared) -> None:
        batch, prompt = inputs["input_ids"].shape
        output, held = prepared.output, self._held(prompt)
        state, forced = self._state(batch, prompt + output.max_new_tokens), output.forced
        self._begin_again(prepared)
        try:
            self._prefill(inputs, state, forced=forced)  # uncaptured: makes the cache
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            refuse(self.module, f"its prefill fails with a cache that stays ({first_line(error)})")
        if state.cache.stored[0] != held[0][1]:
            refuse(self.module, f"it stores {state.cache.stored[0]} tokens for a prompt of {held[0][1]}")
        self._begin_again(prepared)
        with self._graphs.learn():
            kwargs, _ = self._prefill(inputs, state, forced=forced)
        self._capture_steps(state, self._windows(held, output.max_new_tokens - 1), kwargs, forced=forced)
        self._begin_again(prepared)

    def _capture_steps(
        self, state: DecodeState, wanted: Iterator[Spans], kwargs: Mapping[str, Any], *, forced: bool
    ) -> None:
        for needed in wanted:
            if (state.batch, needed, forced) not in self._steps:
                self._steps[state.batch, needed, forced] = self._capture_step(state, needed, kwargs, forced=forced)
                self._report.windows.add((state.batch, *(window for _, window in needed)))

    def _state(self, batch: int, tokens: int) -> DecodeState:
        """The tensors of this many rows, large enough; where they must grow, what wrote to the old ones is dropped."""
        state = self._states.get(batch)
        if state is not None and state.capacity >= tokens:
            return state
        # Later batch sizes get what the longest request so far needs.
        self._capacity = max(self._capacity, window_for(tokens, step=self.settings.cache_step))
        if state is not None:
            self._ready.clear()
            self._steps = {key: play for key, play in self._steps.items() if key[0] != batch}
            self._graphs.forget("language_model")
        state = DecodeState(batch=batch, capacity=self._capacity, layers=self._layers, device=self.device)
        self._states[batch] = state
        return state

    def _capture_step(
        self, state: DecodeState, needed: Spans, kwargs: Mapping[str, Any], *, forced: bool
    ) -> tuple[Step, Play]:
        template = step_template(self.module, state, needed[0][1], kwargs)
        state.rewind(needed)  # the runs before the capture write a few slots, and must not leave their windows
        state.look_at(needed)
        step = Step(
            module=self.module,
            forward=self._forward,
            decoder_config=self._decoder_config,
            state=state,
            windows=needed,
            choice=self._choice(forced=forced),
            template=template,
            compiler=self._compiler,
        )
        self._report.decode_attention.update(step.kernels())
        why_not = self.recorder.obstacle(step)
        if why_not is not None:
            refuse(self.module, f"its decode step cannot be captured: {why_not}")
        return step, self.recorder.record(step)

    def _choice(self, *, forced: bool) -> Choice:
        return Choice(eos=self._eos, pad=self._pad, forced=forced)

    # -------------------------------------------------------------------------------------------- within the clock

    def generate(self, prepared: Prepared, criteria: Sequence[Callable[..., Any]] = ()) -> torch.Tensor:
        """One request from an empty cache, or over the one that :meth:`ready` filled; the new token ids, shape
        (batch, tokens).

        Args:
            criteria: called after every new token with the answer and the token's logits, as ``generate()`` calls
                stopping criteria; what they answer is not used.
        """
        output = prepared.output
        if prepared.cached is None:  # else the caller made it ready, or there is nothing to go on from
            self.ready(prepared, lambda: prepared.inputs)  # nothing to do, where the caller did so
        with torch.no_grad():
            batch, prompt = prepared.inputs["input_ids"].shape
            state = self._states[batch]
            if prepared.cached is None:
                with self._graphs.installed():
                    _, first = self._prefill(prepared.inputs, state, forced=output.forced)
            else:
                first = None
                self._resume(prepared.inputs, state)
            tokens = self._decode(state, self._held(prompt), output, first=first, criteria=criteria)
            return state.answer[:, :tokens].clone()

    def _prefill(
        self, inputs: Mapping[str, Any], state: DecodeState, *, forced: bool
    ) -> tuple[Mapping[str, Any], torch.Tensor]:
        """From inputs to the first token: (what the class is handed besides ids, mask and positions; logits)."""
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        kwargs = {name: value for name, value in inputs.items() if name not in _HANDED_APART}
        kwargs["use_cache"] = True
        if self._keeps_logits:
            kwargs["logits_to_keep"] = 1
        state.cache.look_at(None)
        positions = inputs.get("position_ids")
        if positions is None and self._takes_positions:
            positions = self.module._prepare_position_ids_for_generation(ids, {**kwargs, "attention_mask": mask})
        (_, stored), *shorter = self._held(ids.shape[1])
        state.begin(mask[:, :stored], positions, tuple(shorter))  # no padding, where a method leaves fewer
        model_inputs = self.module.prepare_inputs_for_generation(
            ids,
            past_key_values=state.cache,
            attention_mask=mask,
            position_ids=positions,
            is_first_iteration=True,
            **kwargs,
        )
        logits = self.module(**model_inputs, return_dict=True).logits[:, -1]
        if self._left is not None and state.cache.stored != self._left:
            raise MeasurementError(f"the layers stored {state.cache.stored} tokens, the method says {self._left}")
        self._choice(forced=forced)(state, logits)
        return kwargs, logits

    def _resume(self, inputs: Mapping[str, Any], state: DecodeState) -> None:
        """Make ready for a request of which the cache holds all tokens but the last, as after a step that chose it."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        positions = None
        if self._takes_positions:
            positions = self.module._prepare_position_ids_for_generation(ids, {"attention_mask": mask})[..., :-1]
        state.begin(mask[:, :-1], positions)
        state.token.copy_(ids[:, -1:])

    def _decode(
        self,
        state: DecodeState,
        held: Spans,
        output: Output,
        *,
        first: torch.Tensor | None,
        criteria: Sequence[Callable[..., Any]],
    ) -> int:
        """All steps after the first token, whose logits are given, or after ``held`` tokens; the answer's length."""
        made = int(first is not None)
        for criterion in criteria if made else ():
            criterion(state.answer, first)
        may_end = not output.forced and len(self._eos) > 0
        last = -1
        with ExitStack() as stack:
            for tokens in range(made, output.max_new_tokens):
                if tokens and may_end and self._ended(state):
                    return tokens
                if tokens > last:
                    needed, last = windows_after(held, tokens, step=self.settings.cache_step)
                    state.look_at(needed)
                    stack.close()
                    step, play = self._steps[state.batch, needed, output.forced]
                    stack.enter_context(replaced_forward(self.module, step if self._graphs.as_python else play))
                logits = self.module()  # its hooks, and between them one replay
                for criterion in criteria:
                    criterion(state.answer, logits)
        return output.max_new_tokens

    def _ended(self, state: DecodeState) -> bool:
        """Whether every row has ended: asked once a token, because a step too many would be part of the latency."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return not state.going.item()

    def clear(self) -> None:
        """Forget everything that was captured, with the caches; the next request captures anew."""
        self._steps.clear()
        self._ready.clear()
        self._states.clear()
        for name in ("vision_encoder", "projector", "language_model"):
            self._graphs.forget(name)
        self._capacity = 0

    @property
    def missed(self) -> int:
        """Calls of a stage whose inputs had shapes that were not captured, and ran as Python."""
        return self._graphs.missed

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was captured, what that took, and which attention kernels serve which stage."""
        report = self._report
        return {
            "captured": self.recorder.captures,
            "capture_s": round(report.seconds, 3),
            "shapes": report.shapes,
            "stages": self._graphs.facts,
            "decode": {
                "windows": [list(pair) for pair in sorted(report.windows)],
                "attention": sorted(report.decode_attention),
                "compiled": MODE if self.settings.decode_compile else None,
            },
            "prefill": {"compiled": MODE if self.settings.prefill_compile else None},
            "missed": self.missed,
            "cache_bytes": sum(state.cache.nbytes for state in self._states.values()),
        }


def load_model(spec: ModelSpec, runtime: Runtime, settings: Mapping[str, Any], seed: int) -> TransformersModel:
    """Load a model that answers by a captured loop; see :data:`vlmbench.engines.choice.Engine`.

    Raises:
        ModelError: this model cannot be captured; the reason is named.
        DeviceError: it does not lie on one device, or must be compiled without CUDA.
    """
    from vlmbench.models.loading import load

    model = load(spec, runtime, seed=seed)
    if len(model.devices) > 1:
        raise DeviceError(f"runtime=cudagraph needs the whole model on one device (got {len(model.devices)})")
    chosen = GraphSettings(
        cache_step=settings["cache_step"],
        capture=tuple(settings["capture"]),
        decode_compile=settings["decode_compile"],
        prefill_compile=settings["prefill_compile"],
    )
    model.loop = GraphLoop(module=model.module, anatomy=model.anatomy, device=model.device, settings=chosen)
    return model


def cached_tokens(prepared: Prepared) -> int:
    """Tokens that the cache of a request holds beforehand.

    Raises:
        UnreachablePointError: they are those of a text: this loop fills its cache itself, at random.
    """
    assert prepared.cached is not None
    if prepared.prefill:
        raise UnreachablePointError("runtime=cudagraph begins with an empty cache; going on from a text needs eager")
    return prepared.cached.tokens


def _shapes(inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((name, tuple(value.shape)) for name, value in sorted(inputs.items()) if hasattr(value, "shape"))
