"""``measure``: the measurement loop of the command line on a model that is already loaded."""

from __future__ import annotations

import shutil
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from vlmbench.api.arguments import check
from vlmbench.api.models import adopt, alone, lent
from vlmbench.api.requests import samples_of
from vlmbench.api.run import WHICH, Run, Which, place_of
from vlmbench.api.shipped import choice, component, defaults
from vlmbench.errors import FAILED, INTERRUPTED, OK, ConfigError, InputError, RowsLostError, VlmbenchError
from vlmbench.machine.processors import Processors
from vlmbench.machine.turns import Turns
from vlmbench.records.outcome import Cause, OutcomeFile, State
from vlmbench.records.provenance import collect
from vlmbench.records.run_directory import RunDirectory
from vlmbench.request import MOST_SIDE, MOST_TOKENS, Output
from vlmbench.runner.plan import Knobs, Series, dataset_series, sweep_series

if TYPE_CHECKING:
    from torch import nn

    from vlmbench.data.protocol import Samples
    from vlmbench.models.transformers_model import TransformersModel
    from vlmbench.probes.protocol import Probe
    from vlmbench.runner.loop import Progress
    from vlmbench.runner.plan import SeriesState

POLICIES = ("forced", "natural")
BATCHES = ("different", "copies")
PROBES = ("timeline", "memory", "clocks", "recompiles", "kernels", "memory_stages")
_LEAST = {
    "output_tokens": 1, "repeats": 1, "prompt_tokens": 1, "bare_every": 0, "trace_requests": 0, "time_limit_s": 0,
    "seed": 0,
}  # fmt: skip
_MOST = {**dict.fromkeys(("output_tokens", "prompt_tokens", "repeats"), MOST_TOKENS), "image_size": MOST_SIDE}
_OUTPUT_AXES = ("output_tokens",)
_ELSEWHERE = ("intervention.", "load.")
_WHERE = "trace_dir"  # the one field of a shipped probe that names a place in the run directory


class Silent:
    """Progress that shows nothing."""

    def expect(self, runs: int) -> None:
        """Expect that many runs more."""

    def advance(self, point_id: str, runs: int = 1, *, earlier: bool = False) -> None:
        """Note runs of a point that are over."""

    def end(self, point_id: str) -> None:
        """Note a point that is over."""


def measure(
    model: nn.Module,
    processor: Any,
    requests: Any,
    *,
    output_tokens: int = 32,
    policy: str = "forced",
    sweep: Mapping[str, Any] | None = None,
    probes: Sequence[str | Probe] = PROBES,
    repeats: int = 1,
    prompt_tokens: int | None = None,
    batch: str = "different",
    image_size: tuple[int, int] | None = None,
    bare_every: int = 2,
    reference: bool = True,
    costs: bool = True,
    yardstick: bool = True,
    change_processor: bool = False,
    trace_requests: int = 3,
    stopping: Mapping[str, Any] | None = None,
    warmup: Mapping[str, Any] | None = None,
    time_limit_s: float | None = None,
    turns: Mapping[str, Any] | None = None,
    seed: int = 0,
    directory: Path | str | None = None,
    rows: Which = "measured",
    progress: Progress | None = None,
) -> Run:
    """Measure where the latency of a loaded vision-language model goes.

    One request, or a sweep over the first one, is repeated until the interval of its median is narrow enough; several
    requests are measured ``repeats`` times each, with one of them repeated beside them as reference. Rows are written
    as they come; the model is given back in the mode and with the settings that it had, also after an exception.

    Args:
        requests: a list of ``(image, text)`` or ``([image, image], text)``, images as PIL images, paths or encoded
            bytes (a PIL image is encoded as PNG first, so ``T_preprocess`` holds the decoding of a PNG); or
            :class:`vlmbench.request.Sample` objects; or a data set of :mod:`vlmbench.data`.
        output_tokens: new tokens, exactly (``policy="forced"``) or at most (``"natural"``).
        policy: ``forced`` suppresses the end of the answer, ``natural`` lets the model stop.
        sweep: axis to values, ``{"vision_tokens": "auto(6)"}`` or ``{"output_tokens": [8, 64]}``
            (:mod:`vlmbench.sweep` lists the axes).
        probes: names of ``conf/probe``, or probe objects.
        repeats: runs of each request, where there are several requests and no sweep.
        prompt_tokens: random words instead of the text, this many tokens.
        batch: with ``sweep={"batch_size": …}``: ``different`` requests, or ``copies`` of the first.
        image_size: (width, height) in pixels that every image is resized to.
        bare_every: every n-th run has one without instrument beside it (0: none).
        reference: repeat one request beside several.
        costs: FLOPs, bytes and floors of every run.
        yardstick: a fixed calculation beside the runs, which tells how fast the host is.
        change_processor: put the thread on another processor of the host before each request (Linux).
        trace_requests: runs of each point that probes with runs of their own watch.
        stopping: changes to the stopping rule, ``{"max_samples": 50}``.
        warmup: changes to the warm-up, ``{"max_runs": 3}``.
        time_limit_s: of the whole measurement, s, waiting for turns left out; what was measured until then is kept.
        turns: taken with other processes of this machine until the call ends, as ``measurement.turns`` of the command:
            ``{"directory": "outputs/turns"}``; None measures alone.
        seed: of orders and random text.
        directory: keep the run there (a directory of the same settings is continued); None keeps it for as long as
            the :class:`Run` lives.
        rows: which rows ``frame`` holds: ``measured`` or ``all``.
        progress: shown progress; None shows none.

    Raises:
        ConfigError: an argument of another type or out of range, an unknown axis or probe.
        InputError: no request, or one that is no request; ``directory`` is a file.
        AnatomyError: the model's stages cannot be found.
        DirectoryConflictError: ``directory`` belongs to other settings.
        DeviceError: another thread of this process measures; ``change_processor`` where no thread can be moved, or
            there is one processor only.

    Examples:
        >>> import vlmbench
        >>> from PIL import Image
        >>> model, processor = vlmbench.load("tiny", device="cpu")
        >>> image = Image.new("RGB", (56, 56), "grey")
        >>> run = vlmbench.measure(model, processor, [(image, "What is this?")], output_tokens=4,
        ...                        stopping={"max_samples": 10}, costs=False)
        >>> sorted({str(name) for name in run.components["component"]})[:2]
        ['T_LLM_decode', 'T_LLM_prefill']
    """
    check(measure.__annotations__, locals(), least=_LEAST, most=_MOST)
    for name, given, allowed in (("policy", policy, POLICIES), ("batch", batch, BATCHES), ("rows", rows, WHICH)):
        if given not in allowed:
            raise ConfigError(f"'{name}' must be one of {', '.join(allowed)} (got {given!r})")
    if isinstance(probes, str) or not isinstance(probes, Sequence) or not all(map(_is_probe, probes)):
        raise ConfigError(f"'probes' must be a list of names of conf/probe or of probes (got {probes!r})")
    if progress is not None and not hasattr(progress, "advance"):
        raise ConfigError(f"'progress' must be None or have expect, advance and end (got {progress!r})")
    if directory is not None:
        directory = place_of(directory, "directory")
        if directory.exists() and not directory.is_dir():
            raise InputError(f"'directory' must be a directory, or not exist yet ('{directory}' is a file)")
    samples = samples_of(requests)
    processors = Processors(on=change_processor, seed=seed)
    target = adopt(model, processor)
    kind = _kind(sweep)
    settings: dict[str, Any] = {
        "task": "measure",
        "name": "measure",
        "report": kind,
        "workload": "dataset" if kind == "phase1" and len(samples) > 1 else "controlled",
        "seed": seed,
        "output": {"tokens": output_tokens, "policy": policy},
        "measurement": {
            "repeats": repeats,
            "batch": batch,
            "prompt_tokens": prompt_tokens,
            "image_size": None if image_size is None else list(image_size),
            "bare_every": bare_every,
            "reference": reference,
            "costs": costs,
            "yardstick": yardstick,
            "change_processor": change_processor,
            "trace_requests": trace_requests,
            "stopping": {**defaults("measurement", "stopping"), **(stopping or {})},
            "warmup": {**defaults("measurement", "warmup"), **(warmup or {})},
        },
        "model": {"name": target.facts["name"]},
        "dataset": {"name": "requests"},
        "sweep": {"name": "sweep" if sweep else "none", "axes": dict(sweep or {})},
        "probe": {name: {} for name in _names(probes)},
    }
    place = Path(mkdtemp(prefix="vlmbench-")) if directory is None else Path(directory)
    run = Run(directory=place, which=rows)
    if directory is None:  # it lives as long as its run; one that fails has no run, and goes at once
        weakref.finalize(run, shutil.rmtree, place, ignore_errors=True)
    with alone(), lent(target), _turns(place, turns or {}) as taken:
        _measure_into(
            place,
            target,
            samples,
            settings,
            probes=probes,
            time_limit_s=time_limit_s,
            progress=progress,
            turns=taken,
            processors=processors,
        )
    return run


_OF_TURNS = {"directory": "str | Path", "members": "int", "runs": "int", "wait_s": "float"}


def _turns(place: Path, given: Mapping[str, Any]) -> Turns:
    if wrong := [name for name in given if name not in _OF_TURNS]:
        raise ConfigError(f"'turns' may hold {', '.join(_OF_TURNS)} (got {', '.join(wrong)})")
    check(_OF_TURNS, given, least={"members": 1, "runs": 1, "wait_s": 0})
    rules = dict(given)
    directory = rules.pop("directory", None)
    if given and directory is None:
        raise ConfigError("'turns' needs the directory that the processes share, {'directory': 'outputs/turns'}")
    return Turns(directory=None if directory is None else Path(directory), of=place, **rules)


def _kind(sweep: Mapping[str, Any] | None) -> str:
    if not sweep:
        return "phase1"
    return "phase3" if set(sweep) <= set(_OUTPUT_AXES) else "phase2"


def _is_probe(probe: Any) -> bool:
    return isinstance(probe, str) or hasattr(probe, "watch")


def _names(probes: Sequence[str | Probe]) -> list[str]:
    return [probe if isinstance(probe, str) else probe.name for probe in probes]


def _measure_into(
    place: Path,
    target: TransformersModel,
    samples: Samples,
    settings: Mapping[str, Any],
    *,
    probes: Sequence[str | Probe],
    time_limit_s: float | None,
    progress: Progress | None,
    turns: Turns,
    processors: Processors,
) -> None:
    """Rows, provenance and ``points.json`` of a run directory; continues one that was begun with the same settings."""
    from vlmbench.runner.costs import annotator, costs_of
    from vlmbench.runner.loop import Runner

    measurement, device = settings["measurement"], str(target.device)
    with RunDirectory(place, settings) as run, _end_noted(run.outcome):
        series = _series(target, samples, settings)
        built = [_probe(probe, place) for probe in probes]
        counted = costs_of(target, "table") if measurement["costs"] else None
        with run.rows() as store:
            here = collect(settings, model_facts=target.facts, device=device, seed=settings["seed"])
            here["dataset"] = {"name": "requests", "samples": len(samples)}
            if (facts := turns.facts()) is not None:
                here["turns"] = here["sessions"][-1]["turns"] = facts
            if counted is not None and counted.peaks.peaks is not None:
                here["device_peaks"] = asdict(counted.peaks.peaks)
            run.begin(here, points_total=len(series))
            runner = Runner(
                model=target,
                probes=[probe for probe in built if probe.applies(target)],
                store=store,
                warmup=_warmup(target, measurement["warmup"]),
                seed=settings["seed"],
                progress=progress or Silent(),
                trace_requests=measurement["trace_requests"],
                yardstick=measurement["yardstick"],
                processors=processors,
                turns=turns,
                annotate=None if counted is None else annotator(counted, target),
                deadline_s=None if time_limit_s is None else time.monotonic() + time_limit_s,
                attempts=run.attempts,
            )
            states = runner.run(series)
        run.end([state.report() for state in states], device=device, extra=target.closing_facts)
        _conclude(run, states)
    if not any(state.measured for state in states):
        reasons = "; ".join(dict.fromkeys(state.reason or "no time" for state in states))
        raise InputError(f"no request could be measured: {reasons}")


@contextmanager
def _end_noted(outcome: OutcomeFile) -> Iterator[None]:
    """Note that an error or Ctrl-C ended a run that was begun: its process lives on, and nobody else would."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, RowsLostError):
            outcome.follow(error.moved_to)
        if outcome.now.started_unix_s and not outcome.is_lost:
            with suppress(VlmbenchError):  # of the disk; the first error is what the caller must see
                if isinstance(error, KeyboardInterrupt):
                    outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason="interrupted", cause=Cause.STOPPED)
                else:
                    status = error.exit_status if isinstance(error, VlmbenchError) else FAILED
                    outcome.end(State.FAILED, exit_status=status, error=error)
        raise


def _conclude(run: RunDirectory, states: Sequence[SeriesState]) -> None:
    """The outcome as the command line gives it: done, failed, or interrupted with what is left."""
    done = sum(state.ended not in ("time_limit", "interrupted") for state in states)
    if done < len(states):
        reason = f"{len(states) - done} of {len(states)} points were cut short by time_limit_s"
        run.outcome.end(State.INTERRUPTED, exit_status=INTERRUPTED, reason=reason)
    elif any(state.failed or not state.measured for state in states):
        reason = next((state.reason for state in states if state.reason), "nothing was measured")
        run.outcome.end(State.FAILED, exit_status=FAILED, reason=reason)
    else:
        run.outcome.end(State.DONE, exit_status=OK)


def _series(target: TransformersModel, samples: Samples, settings: Mapping[str, Any]) -> list[Series]:
    from vlmbench.sweep import Sweep, axis_names

    output, measurement = settings["output"], settings["measurement"]
    size = measurement["image_size"]
    try:
        knobs = Knobs(
            output=Output(max_new_tokens=output["tokens"], forced=output["policy"] == "forced"),
            prompt_tokens=measurement["prompt_tokens"],
            image_size=None if size is None else (size[0], size[1]),
            seed=settings["seed"],
            batch=measurement["batch"],
        )
        sweep = Sweep(name=settings["sweep"]["name"], axes=settings["sweep"]["axes"])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name in axis_names(sweep.axes):
        if name.startswith(_ELSEWHERE):
            raise ConfigError(
                f"axis '{name}' is none of vlmbench.measure, which runs one request after the other on the model as it "
                "is\nuse the command: experiment=interventions intervention=NAME, or runtime=vllm load=closed"
            )
    if sweep.auto is not None:
        sweep = sweep.found(target.vision_counts(knobs.request(samples[0]), sweep.auto))
    bare_every = measurement["bare_every"]
    if settings["workload"] == "controlled":
        rule = component(measurement["stopping"])
        return sweep_series(samples, 0, knobs, sweep, stopping=rule, bare_every=bare_every)
    middle = len(samples) // 2 if measurement["reference"] else None
    repeats = measurement["repeats"]
    return dataset_series(samples, knobs, repeats=repeats, bare_every=bare_every, reference=middle)


def _probe(probe: str | Probe, place: Path) -> Probe:
    if not isinstance(probe, str):
        return probe
    node = choice("probe", probe)[probe]
    changes = {_WHERE: str(place / "traces")} if _WHERE in node else {}
    built: Probe = component(node, **changes)
    return built


def _warmup(target: TransformersModel, node: Mapping[str, Any]) -> Any:
    """As given; what depends on the length of the cache is warmed to the full length, the longest first."""
    warmup = component(node)
    if not target.compile and target.cache_implementation != "static":
        return warmup
    return replace(warmup, output_tokens=None, longest_first=True)
