"""Marks at the engine's own calls, because forward hooks never fire on classes that vLLM compiles.

Wrapped are the calls that both of vLLM's model runners share: ``embed_multimodal`` of the model (the vision encoder
with its projector), ``forward`` of the projector, ``execute_model`` and ``sample_tokens`` of the executor (the latter
ends with a token), ``schedule`` and ``update_from_output`` of the scheduler, ``process_outputs`` (detokenising).
Nothing here waits for the device. What is wrapped is wrapped for one run and put back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from vlmbench.engines.vllm.start import runner_of
from vlmbench.models.protocol import Told

Call = Callable[..., Any]


@contextmanager
def wrapped(owner: Any, name: str, make: Callable[[Call], Call]) -> Iterator[None]:
    """Put ``make(call)`` in the place of ``owner.name``, on this object only, and take it away again."""
    own = vars(owner).get(name)
    setattr(owner, name, make(getattr(owner, name)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _between(told: Told, stage: str) -> Callable[[Call], Call]:
    """Tell when a call begins and ends."""

    def make(call: Call) -> Call:
        def marked(*args: Any, **kwargs: Any) -> Any:
            told(stage, True)
            result = call(*args, **kwargs)
            told(stage, False)
            return result

        return marked

    return make


def _of_steps(told: Told) -> Callable[[Call], Call]:
    """Tell when a step's model begins and ends; asynchronous scheduling ends with an empty step, which runs nothing."""
    marked = _between(told, "forward")

    def make(call: Call) -> Call:
        inside = marked(call)

        def step(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            return (inside if scheduled.total_num_scheduled_tokens else call)(scheduled, *args, **kwargs)

        return step

    return make


@dataclass(kw_only=True)
class Steps:
    """Counts what a run's steps give, and what the host spent in which part of them.

    Args:
        host_ms: part to time on the host's clock, summed over the run.
        encoder_calls: times that the vision encoder ran.
        tokens: request to tokens that were chosen so far.
        told: tokens of which the criteria were told.
    """

    host_ms: dict[str, float] = field(default_factory=dict)
    encoder_calls: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    told: int = 0

    def timed(self, part: str) -> Callable[[Call], Call]:
        """Add what a call takes on the host's clock to a part."""

        def make(call: Call) -> Call:
            def clocked(*args: Any, **kwargs: Any) -> Any:
                begin = time.perf_counter_ns()
                result = call(*args, **kwargs)
                self.host_ms[part] = self.host_ms.get(part, 0.0) + (time.perf_counter_ns() - begin) / 1e6
                return result

            return clocked

        return make

    def counted(self, call: Call) -> Call:
        """Count runs of the encoder."""

        def counting(*args: Any, **kwargs: Any) -> Any:
            self.encoder_calls += 1
            return call(*args, **kwargs)

        return counting


@dataclass(frozen=True, kw_only=True)
class Boundaries:
    """Where the stages of one loaded engine begin and end.

    Args:
        engine: vLLM's ``LLMEngine``.
        projectors: paths of the projector's modules in vLLM's model; empty where they cannot be told from the encoder.
        notes: what is unusual, in words.
    """

    engine: Any
    projectors: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, engine: Any) -> Boundaries:
        """By the model's own table of its parts (``get_mm_mapping``)."""
        model = runner_of(engine).get_model()
        mapping = getattr(model, "get_mm_mapping", None)
        paths = [str(path).rstrip(".") for path in mapping().connector] if mapping is not None else []
        modules = dict(model.named_modules())
        found = tuple(path for path in paths if path in modules)
        notes = [] if found else ["vLLM names no projector of this model: its time is the vision encoder's"]
        if engine.vllm_config.compilation_config.cudagraph_mm_encoder and found:
            found = ()
            notes.append("the vision encoder is captured with its projector: the projector's time is the encoder's")
        return cls(engine=engine, projectors=found, notes=tuple(notes))

    @contextmanager
    def marked(self, told: Told, steps: Steps) -> Iterator[None]:
        """Tell where stages begin and end, and keep the host's times, until left.

        Args:
            told: is told the stage (``vision_encoder``, ``projector``, ``forward``) and whether it begins.
            steps: takes the host's times.
        """
        runner, core = runner_of(self.engine), self.engine.engine_core.engine_core
        model = runner.get_model()
        with ExitStack() as stack:
            put = stack.enter_context
            for owner in self._encoders(runner, model):
                name = "execute" if owner is not model else "embed_multimodal"
                put(wrapped(owner, name, _between(told, "vision_encoder")))
            for path in self.projectors:
                for module in _called(model.get_submodule(path)):
                    put(wrapped(module, "forward", _between(told, "projector")))
            put(wrapped(self.engine.model_executor, "execute_model", _of_steps(told)))
            put(wrapped(core.scheduler, "schedule", steps.timed("schedule")))
            put(wrapped(core.scheduler, "update_from_output", steps.timed("schedule")))
            put(wrapped(self.engine.model_executor, "sample_tokens", steps.timed("sampling")))
            put(wrapped(self.engine.output_processor, "process_outputs", steps.timed("output")))
            yield

    def _encoders(self, runner: Any, model: Any) -> Sequence[Any]:
        """What runs the encoder: the model, and what replays the encoder's graphs where it is captured."""
        state = getattr(runner, "model_state", None)
        holder = getattr(state, "encoder_runner", None)
        managers = (getattr(runner, "encoder_cudagraph_manager", None), getattr(holder, "cudagraph_manager", None))
        return [model, *(manager for manager in managers if manager is not None)]

    @contextmanager
    def counted(self, steps: Steps, criteria: Sequence[Call]) -> Iterator[None]:
        """Call the criteria once a token, as ``generate()`` does, and count runs of the encoder, until left.

        A token counts once every request of the batch that goes on has it. A step that only runs a part of a prompt
        gives none. Sampling belongs to what was scheduled last, also where scheduling is asynchronous; there a request
        that ends by itself is sampled once more, which the timeline calls an undone step.
        """
        runner, core = runner_of(self.engine), self.engine.engine_core.engine_core
        scheduler = core.scheduler
        scheduled: Mapping[str, int] = {}

        def scheduling(call: Call) -> Call:
            def schedule(*args: Any, **kwargs: Any) -> Any:
                nonlocal scheduled
                output = call(*args, **kwargs)
                scheduled = output.num_scheduled_tokens
                return output

            return schedule

        def sampling(call: Call) -> Call:
            def sample(*args: Any, **kwargs: Any) -> Any:
                result = call(*args, **kwargs)
                for name in scheduled:
                    request = scheduler.requests.get(name)
                    if request is not None and request.num_computed_tokens >= request.num_prompt_tokens:
                        steps.tokens[name] = steps.tokens.get(name, 0) + 1
                least = min(steps.tokens.values(), default=0)
                while steps.told < least:
                    steps.told += 1
                    for criterion in criteria:
                        criterion(None, None)
                return result

            return sample

        with ExitStack() as stack:
            for owner in self._encoders(runner, runner.get_model()):
                name = "execute" if owner is not runner.get_model() else "embed_multimodal"
                stack.enter_context(wrapped(owner, name, steps.counted))
            if criteria:
                stack.enter_context(wrapped(scheduler, "schedule", scheduling))
                stack.enter_context(wrapped(self.engine.model_executor, "sample_tokens", sampling))
            yield


def _called(module: Any) -> list[Any]:
    """The modules that are called: those in a list of modules, which itself never is."""
    return list(module) if type(module).__name__ == "ModuleList" else [module]
