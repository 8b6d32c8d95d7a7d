"""Marks at the engine's own calls, because forward hooks never fire on classes that vLLM compiles.

Wrapped are the calls that both of vLLM's model runners share: ``embed_multimodal`` of the model (the vision encoder
with its projector), ``forward`` of the projector, ``execute_model`` and ``sample_tokens`` of the executor (the latter
ends with a token), ``schedule`` and ``update_from_output`` of the scheduler, ``process_outputs`` (detokenising).
Nothing here waits for the device. What is wrapped is wrapped for one run, before its clock starts, and put back; only
runs of the encoder are counted at any time.
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


def _nothing() -> None:
    """Nobody is told."""


def _between(begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[Call], Call]:
    """Tell when a call begins and ends."""

    def make(call: Call) -> Call:
        def marked(*args: Any, **kwargs: Any) -> Any:
            begins()
            result = call(*args, **kwargs)
            ends()
            return result

        return marked

    return make


@dataclass(kw_only=True)
class Steps:
    """Counts what a run's steps give, and what the host spent in which part of them.

    Each call of the engine is wrapped once, by what does all that is to be done there: the thread that runs these also
    launches the model's work.

    Args:
        host_ns: part to the times of its calls on the host's clock; empty where nobody listens.
        tokens: request to tokens that were chosen so far.
        told: tokens of which the criteria were told.
        criteria: called once a token.
    """

    host_ns: dict[str, list[int]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    told: int = 0
    criteria: Sequence[Call] = ()
    _executed: Mapping[str, int] = field(init=False, default_factory=dict)

    def _spent(self, part: str) -> Callable[[int], None]:
        return self.host_ns.setdefault(part, []).append

    def timed(self, part: str) -> Callable[[Call], Call]:
        """Add what a call takes on the host's clock to a part."""
        spent, now = self._spent(part), time.perf_counter_ns

        def make(call: Call) -> Call:
            def clocked(*args: Any, **kwargs: Any) -> Any:
                begin = now()
                result = call(*args, **kwargs)
                spent(now() - begin)
                return result

            return clocked

        return make

    def executing(self, begins: Callable[[], None], ends: Callable[[], None]) -> Callable[[Call], Call]:
        """Tell when a step's model begins and ends, and note which requests it is of; asynchronous scheduling ends with
        an empty step, which runs nothing.
        """

        def make(call: Call) -> Call:
            def step(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
                if not scheduled.total_num_scheduled_tokens:
                    return call(scheduled, *args, **kwargs)
                self._executed = scheduled.num_scheduled_tokens
                begins()
                result = call(scheduled, *args, **kwargs)
                ends()
                return result

            return step

        return make

    def sampling(self, part: str, requests: Mapping[str, Any]) -> Callable[[Call], Call]:
        """As :meth:`timed`, and tell the criteria of tokens.

        A token counts once every request of the batch that goes on has it. A step that only runs a part of a prompt
        gives none. Sampling belongs to what was run last, also where scheduling is asynchronous; there a request that
        ends by itself is sampled once more, which the timeline calls an undone step.

        Args:
            requests: of the scheduler, by name.
        """
        spent, tokens, now = self._spent(part), self.tokens, time.perf_counter_ns

        def make(call: Call) -> Call:
            def sample(*args: Any, **kwargs: Any) -> Any:
                begin = now()
                result = call(*args, **kwargs)
                spent(now() - begin)
                for name in self._executed:
                    request = requests.get(name)
                    if request is not None and request.num_computed_tokens >= request.num_prompt_tokens:
                        tokens[name] = tokens.get(name, 0) + 1
                while tokens and self.told < min(tokens.values()):
                    self.told += 1
                    for criterion in self.criteria:
                        criterion(None, None)
                return result

            return sample

        return make


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
        model = runner_of(self.engine).get_model()
        with ExitStack() as stack:
            put = stack.enter_context
            for owner, name in self._encoders():
                put(wrapped(owner, name, _between(told("vision_encoder", True), told("vision_encoder", False))))
            for path in self.projectors:
                for module in _called(model.get_submodule(path)):
                    put(wrapped(module, "forward", _between(told("projector", True), told("projector", False))))
            put(self.stepped(steps, told("forward", True), told("forward", False)))
            put(wrapped(self._scheduler, "schedule", steps.timed("schedule")))
            put(wrapped(self._scheduler, "update_from_output", steps.timed("update")))
            put(wrapped(self.engine.output_processor, "process_outputs", steps.timed("output")))
            yield

    @contextmanager
    def stepped(
        self, steps: Steps, begins: Callable[[], None] = _nothing, ends: Callable[[], None] = _nothing
    ) -> Iterator[None]:
        """Call the criteria of the steps once a token, as ``generate()`` does, until left."""
        executor = self.engine.model_executor
        with (
            wrapped(executor, "execute_model", steps.executing(begins, ends)),
            wrapped(executor, "sample_tokens", steps.sampling("sampling", self._scheduler.requests)),
        ):
            yield

    @property
    def _scheduler(self) -> Any:
        return self.engine.engine_core.engine_core.scheduler

    def _encoders(self) -> list[tuple[Any, str]]:
        """What runs the encoder: the model, and what replays the encoder's graphs where it is captured."""
        runner = runner_of(self.engine)
        holder = getattr(getattr(runner, "model_state", None), "encoder_runner", None)
        managers = (getattr(runner, "encoder_cudagraph_manager", None), getattr(holder, "cudagraph_manager", None))
        found = [(manager, "execute") for manager in managers if manager is not None]
        return [(runner.get_model(), "embed_multimodal"), *found]

    def count_encoder(self, ran: Callable[[], None]) -> None:
        """Tell of every run of the encoder, for good: bare runs count them, too, and put nothing in place within their
        clock.
        """

        def make(call: Call) -> Call:
            def counting(*args: Any, **kwargs: Any) -> Any:
                ran()
                return call(*args, **kwargs)

            return counting

        for owner, name in self._encoders():
            setattr(owner, name, make(getattr(owner, name)))


def _called(module: Any) -> list[Any]:
    """The modules that are called: those in a list of modules, which itself never is."""
    return list(module) if type(module).__name__ == "ModuleList" else [module]
