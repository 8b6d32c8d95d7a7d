"""The timeline probe: all stages of one ``generate()`` from marks at their boundaries.

Marks are set by forward hooks on the modules of the model's anatomy and by a stopping criterion that ``generate()``
calls once a token. They do not synchronise; they are read after the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmbench.interventions.marks import marks_of
from vlmbench.models.protocol import TellsStages, VisionLanguageModel, Watched
from vlmbench.probes.nvtx import Ranges, check_nvtx
from vlmbench.probes.protocol import RunFacts, Watch
from vlmbench.probes.stages import Kind, Mark, Stages, cut, method_times

if TYPE_CHECKING:
    import torch

    from vlmbench.machine.clock import Clock, Marker

_STAGE_COLUMNS = (
    "T_setup",
    "T_vision_encoder",
    "T_projector",
    "T_LLM_prefill",
    "T_LLM_decode",
    "T_decode_forward",
    "T_decode_loop",
    "TTFT_model",
)


@dataclass(frozen=True, kw_only=True)
class TimelineProbe:
    """Times every stage of a request (see ``docs/method.md``).

    Args:
        residual_goal: a record whose |T_residual| exceeds this share of T_total is flagged, not repaired.
        host_times: on a GPU, also store when the host set the marks (``host_T_*``).
        nvtx: also open an NVTX range for each stage, for Nsight Systems (CUDA alone).
    """

    residual_goal: float = 0.01
    host_times: bool = True
    nvtx: bool = False

    name = "timeline"
    own_run = False
    max_output_tokens = None

    def __post_init__(self) -> None:
        if not 0 < self.residual_goal < 1:
            raise ValueError(f"'residual_goal' must be between 0 and 1 (got {self.residual_goal})")

    def applies(self, model: VisionLanguageModel) -> bool:
        """To every model.

        Raises:
            ConfigError: NVTX ranges of a model that is not on a GPU.
        """
        if self.nvtx:
            check_nvtx(model.device.type)
        return True

    @contextmanager
    def watch(self, model: Watched) -> Iterator[Watch]:
        """Hooks on the model's stages for one run."""
        watch = (_WatchWithRanges if self.nvtx else TimelineWatch)(model, self)
        try:
            yield watch
        finally:
            watch.detach()


_TOLD = {
    ("vision_encoder", True): Kind.ENTER_VISION,
    ("vision_encoder", False): Kind.EXIT_VISION,
    ("projector", True): Kind.ENTER_PROJECTOR,
    ("projector", False): Kind.EXIT_PROJECTOR,
    ("forward", True): Kind.ENTER_FORWARD,
    ("forward", False): Kind.EXIT_FORWARD,
}


class _GoOn:
    """What the token criterion answers: "not finished", for every row.

    ``generate()`` combines criteria by ``is_done | answer``. A tensor of False would cost a kernel launch a token, an
    expense of the instrument; this answer hands ``is_done`` back as it is.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's hook for foreign operands: ``is_done | self`` is ``is_done``."""
        return args[0]


_GO_ON = _GoOn()


class TimelineWatch:
    """The probe at work on one run: its hooks, its marks, and the values they give."""

    def __init__(self, model: Watched, probe: TimelineProbe) -> None:
        self._probe = probe
        self._clock: Clock = model.clock
        self._in_forward = False
        self._language_seen = False
        self._handles: list[Any] = []
        self._one_device = len(model.devices) == 1
        self._unlisten: Callable[[], None] | None = None
        self._tells = isinstance(model, TellsStages)
        self._first, self._last = self._marker(Kind.START), self._marker(Kind.END)
        self.stopping_criteria = [self._criterion()]
        self._method = marks_of(model.module)
        self._of_method = self._method.active
        self._attach(model)

    def _attach(self, model: Watched) -> None:
        if self._method.active:
            self._method.listen(self._marker(Kind.ENTER_METHOD), self._marker(Kind.EXIT_METHOD))
        if isinstance(model, TellsStages):
            self._unlisten = model.listen(lambda stage, begins: self._marker(_TOLD[stage, begins]))
            return
        top = model.module
        anatomy = model.anatomy
        for paths, enter, exit_ in (
            (anatomy.vision_encoder, Kind.ENTER_VISION, Kind.EXIT_VISION),
            (anatomy.projector, Kind.ENTER_PROJECTOR, Kind.EXIT_PROJECTOR),
        ):
            for path in paths:
                module = top.get_submodule(path)
                first, last = self._ends(module)
                self._hook(module, self._marker(enter, first), self._marker(exit_, last))
        if model.compile:
            # Vision runs before the compiled call, and tokens are marked by generate() itself. Marks inside would
            # break the graph, so there is no split of decode into forwards and loop.
            return
        for path in anatomy.language_model:
            module = top.get_submodule(path)
            if module is not top:
                first, last = self._ends(module)
                self._hook(module, *self._language(first, last))
        self._hook(top, *self._forward(*self._ends(top)))

    def _hook(self, module: torch.nn.Module, before: Any, after: Any) -> None:
        # Prepend the exit and append the entry, so that other people's hooks stay outside the marks; the hooks of a
        # method that is measured belong inside: its work is part of the stage.
        inside = self._method.active
        self._handles.append(module.register_forward_pre_hook(before, prepend=inside))
        self._handles.append(module.register_forward_hook(after, prepend=not inside))

    def _ends(self, module: torch.nn.Module) -> tuple[torch.device | None, torch.device | None]:
        """Devices of a module's first and last parameter, where its work begins and ends; None for the only device."""
        parameters = [] if self._one_device else list(module.parameters())
        return (parameters[0].device, parameters[-1].device) if parameters else (None, None)

    def detach(self) -> None:
        """Remove every hook."""
        self._method.rest()
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # What these return is called by torch, by generate() and by the engine: the instrument's cost. It is made before
    # the run, and a mark is one call.
    def _marker(self, kind: Kind, device: torch.device | None = None) -> Marker:
        return self._clock.marker(kind, device)

    def _criterion(self) -> Callable[..., Any]:
        mark = self._marker(Kind.TOKEN)

        def token(input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:  # noqa: ARG001
            mark()
            return _GO_ON

        return token

    def _forward(self, first: torch.device | None, last: torch.device | None) -> tuple[Marker, Marker]:
        begins, ends = self._marker(Kind.ENTER_FORWARD, first), self._marker(Kind.EXIT_FORWARD, last)

        def enter(*_: Any) -> None:
            self._in_forward = True
            begins()

        def leave(*_: Any) -> None:
            self._in_forward = False
            ends()

        return enter, leave

    def _language(self, first: torch.device | None, last: torch.device | None) -> tuple[Marker, Marker]:
        begins, ends = self._marker(Kind.ENTER_LANGUAGE, first), self._marker(Kind.EXIT_LANGUAGE, last)

        def enter(*_: Any) -> None:
            # Inside the top-level forward only the first entry matters: it ends the vision work.
            if not self._in_forward or not self._language_seen:
                begins()
                self._language_seen = True

        def leave(*_: Any) -> None:
            if not self._in_forward:
                ends()

        return enter, leave

    def start(self) -> None:
        """The first mark."""
        self._language_seen = self._in_forward = False
        self._clock.begin()
        self.began_ns = time.perf_counter_ns()
        self._first()

    def stop(self) -> None:
        """The last mark."""
        self._last()

    def values(self, run: RunFacts) -> dict[str, Any]:
        """Stage times in ms, inter-token times, flags.

        Raises:
            MeasurementError: marks are missing.
        """
        stages = self._cut(self._clock.read(), run)
        values = _columns(stages)
        gaps = [round(x, 6) for x in stages.ITL]
        values["ITL" if run.num_forwards is None else "between_forwards_ms"] = gaps
        out = stages.tail if self._tells else 0.0
        if self._tells:
            values["T_answer_out"] = out
        values["T_residual"] = run.T_total - stages.named - (stages.undone or 0.0) - out
        values.update(self._own_work())
        if self._probe.host_times and (host := self._clock.read_host()) != self._clock.read():
            values.update({f"host_{name}": value for name, value in _columns(self._cut(host, run)).items()})
        flags = [f"negative_{name}" for name in stages.negative()]
        if stages.undone is not None:
            values["T_undone_step"] = stages.undone
            flags.append("undone_step")
        if abs(values["T_residual"]) > self._probe.residual_goal * run.T_total:
            flags.append("residual_above_goal")
        values["flags"] = flags
        return values

    def _own_work(self) -> dict[str, float]:
        """A method's own work, in all and by stage; nothing where no method is attached."""
        if not self._of_method:
            return {}
        spent = method_times(list(zip(self._clock.labels, self._clock.read(), strict=True)))
        return (
            {}
            if not spent
            else {"T_method": sum(spent.values()), **{f"T_method_{stage}": ms for stage, ms in spent.items()}}
        )

    def _cut(self, times: list[float], run: RunFacts) -> Stages:
        marks: list[Mark] = list(zip(self._clock.labels, times, strict=True))
        return cut(marks, num_output_tokens=run.token_marks, prefill=run.prefill)


def _columns(stages: Stages) -> dict[str, Any]:
    return {name: value for name in _STAGE_COLUMNS if (value := getattr(stages, name)) is not None}


class _WatchWithRanges(TimelineWatch):
    """Each mark is followed by the NVTX range that begins there."""

    def __init__(self, model: Watched, probe: TimelineProbe) -> None:
        from torch.cuda import nvtx

        has_vision = bool(model.anatomy.vision_encoder or model.anatomy.projector)
        self._ranges = Ranges(nvtx.range_push, nvtx.range_pop, vision=has_vision)
        super().__init__(model, probe)

    def _marker(self, kind: Kind, device: torch.device | None = None) -> Marker:
        mark, ranges = super()._marker(kind, device), self._ranges

        def both(*_: Any, **__: Any) -> None:
            mark()
            ranges.mark(kind)

        return both
