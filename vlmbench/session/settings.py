"""Settings of a run: what may be said about output, measurement, runtime and the run itself, with types and ranges.

Values and defaults stand in ``conf/``; the dataclasses give types, so that a typo or a wrong type is refused while the
configuration is composed. Ranges are checked in ``__post_init__``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from vlmbench import plugins
from vlmbench.figures.style import FigureStyle
from vlmbench.models.runtime import Runtime
from vlmbench.records.objective import check_names
from vlmbench.request import MOST_SIDE, MOST_TOKENS
from vlmbench.schema import COMPARED_TIMES

MISSING: Any = "???"  # what OmegaConf calls a value that must be given


@dataclass
class OutputConfig:
    """How long answers are. ``policy: auto`` forces the length with random weights and leaves it natural otherwise."""

    tokens: int = MISSING
    policy: str = MISSING

    def __post_init__(self) -> None:
        _at_least("output.tokens", self.tokens, 1)
        _at_most("output.tokens", self.tokens, MOST_TOKENS)
        _one_of("output.policy", self.policy, OUTPUT_POLICIES)


@dataclass
class RuntimeConfig:
    """How the model runs: :class:`vlmbench.models.runtime.Runtime` as the command line types it, and its name."""

    name: str = MISSING
    device: str = MISSING
    dtype: str = MISSING
    attn_implementation: Any = MISSING
    sdpa_backends: list[str] | None = None
    experts_implementation: str | None = MISSING
    cache_implementation: str | None = MISSING
    compile: bool = MISSING
    device_map: str | None = MISSING
    tp_plan: str | None = MISSING
    threads: int | None = MISSING
    strict_device: bool = MISSING
    engine: str = "transformers"
    # Of a loop of our own; what they mean stands in conf/runtime/cudagraph.yaml.
    cache_step: int = 256
    capture: list[str] = field(default_factory=lambda: ["vision_encoder", "projector", "language_model"])
    decode_compile: bool = False
    prefill_compile: bool = False
    # Of vLLM in this process; what they mean stands in conf/runtime/vllm.yaml.
    enforce_eager: bool = False
    max_model_len: int | None = 4096
    same_weights: bool = False
    encoder_stats: bool = False
    untried_version: bool = False
    engine_options: dict[str, Any] = field(default_factory=dict)
    # Of a server; what they mean stands in conf/runtime/endpoint.yaml.
    base_url: str | None = None
    model: str | None = None
    dialect: str = "auto"
    connection: str = "fresh"
    timeout_s: float = 600.0
    silence_s: float = 60.0
    api_key_env: str | None = None
    proxy: str = "environment"
    ca_file: str | None = None
    cache: str = "defeat"
    metrics_path: str | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    pairs: int = 0
    devices: int = 1

    def __post_init__(self) -> None:
        _check_engine(self.engine)
        _at_least("runtime.cache_step", self.cache_step, 1)
        for stage in self.capture:
            _one_of("runtime.capture", stage, CAPTURED)
        _at_least("runtime.max_model_len", self.max_model_len, 2)
        if self.engine == "vllm":
            self._check_vllm()
        if self.engine == "cudagraph":
            self._check_captured()
        for name in ("decode_compile", "prefill_compile"):
            if self.engine != "cudagraph" and getattr(self, name):
                raise ValueError(f"'runtime.{name}' must be false with engine {self.engine} (got true)")
        _at_least("runtime.pairs", self.pairs, 0)
        _at_least("runtime.devices", self.devices, 1)
        self.options()

    def _check_captured(self) -> None:
        """Refuse what a captured loop cannot have.

        Raises:
            ValueError: a model that is spread or split, or transformers' own cache or compiling.
        """
        for name in ("device_map", "tp_plan", "cache_implementation"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"'runtime.{name}' must be null with runtime=cudagraph (got {value})")
        if self.compile:
            raise ValueError("'runtime.compile' must be false with runtime=cudagraph (runtime.decode_compile compiles)")
        if self.prefill_compile and "language_model" not in self.capture:
            raise ValueError("'runtime.prefill_compile' needs language_model in 'runtime.capture'")

    def _check_vllm(self) -> None:
        """Refuse what vLLM decides itself.

        Raises:
            ValueError: transformers' kernels, cache, placement or compiling.
        """
        names = ("attn_implementation", "sdpa_backends", "experts_implementation", "cache_implementation")
        for name in (*names, "device_map", "tp_plan"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"'runtime.{name}' must be null with runtime=vllm, which chooses itself (got {value})")
        if self.compile:
            raise ValueError("'runtime.compile' must be false with runtime=vllm (runtime.enforce_eager=false compiles)")

    def options(self) -> Runtime:
        """How the model is loaded and run: everything but the name of this choice.

        Raises:
            ValueError: a value that is not allowed.
        """
        given = {one.name: getattr(self, one.name) for one in fields(Runtime)}
        backends = given["sdpa_backends"]
        return Runtime(**given | {"sdpa_backends": None if backends is None else tuple(backends)})


@dataclass
class LoadConfig:
    """How requests are sent to a server, and what of their latency is accepted (goodput)."""

    name: str = MISSING
    concurrency: int = MISSING
    rate_per_s: float | None = MISSING
    arrivals: str = MISSING
    trace_file: str | None = MISSING
    warmup_requests: int | None = MISSING
    max_outstanding: int = MISSING
    retries: int = MISSING
    ttft_limit_ms: float | None = MISSING
    tpot_limit_ms: float | None = MISSING
    request_limit_ms: float | None = MISSING

    def __post_init__(self) -> None:
        _one_of("load", self.name, LOADS)
        _one_of("load.arrivals", self.arrivals, ARRIVALS)
        for name, least in (("concurrency", 1), ("max_outstanding", 1), ("retries", 0), ("warmup_requests", 0)):
            _at_least(f"load.{name}", getattr(self, name), least)
        _at_most("load.concurrency", self.concurrency, MOST_TOKENS)
        for name in ("rate_per_s", "ttft_limit_ms", "tpot_limit_ms", "request_limit_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"'load.{name}' must be above 0 (got {value:g})")
        for name, given, kind in (
            ("concurrency", self.concurrency != 1, "closed"),
            ("rate_per_s", self.rate_per_s is not None, "open"),
            ("trace_file", self.trace_file is not None, "open"),
        ):
            if given and self.name != kind:
                raise ValueError(f"'load.{name}' goes with load={kind} (got load={self.name})")
        if self.trace_file is not None and self.arrivals != "trace":
            raise ValueError(f"'load.trace_file' goes with load.arrivals=trace (got {self.arrivals})")


@dataclass
class TurnsConfig:
    """Which processes take turns on this machine; see :class:`vlmbench.machine.turns.Turns`."""

    directory: str | None = None
    members: int = 2
    runs: int = 8
    wait_s: float = 1800.0

    def __post_init__(self) -> None:
        for name, least in (("members", 1), ("runs", 1), ("wait_s", 0)):
            _at_least(f"measurement.turns.{name}", getattr(self, name), least)


@dataclass
class MeasurementConfig:
    """What is measured how often."""

    repeats: int = MISSING
    bare_every: int = MISSING
    reference: bool = MISSING
    costs: bool = MISSING
    controls: bool = MISSING
    batch: str = MISSING
    prompt_tokens: int | None = MISSING
    image_size: list[int] | None = MISSING
    base_sample: int = MISSING
    yardstick: bool = MISSING
    change_processor: bool = MISSING
    trace_requests: int = MISSING
    max_errors_in_a_row: int = MISSING
    time_limit_s: float | None = MISSING
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    stopping: Any = MISSING
    warmup: Any = MISSING

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("bare_every", 0), ("base_sample", 0), ("trace_requests", 0)):
            _at_least(f"measurement.{name}", getattr(self, name), least)
        _one_of("measurement.batch", self.batch, BATCHES)
        _at_least("measurement.prompt_tokens", self.prompt_tokens, 1)
        _at_most("measurement.prompt_tokens", self.prompt_tokens, MOST_TOKENS)
        _at_most("measurement.repeats", self.repeats, MOST_TOKENS)
        _at_least("measurement.max_errors_in_a_row", self.max_errors_in_a_row, 1)
        _at_least("measurement.time_limit_s", self.time_limit_s, 0)
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ValueError(f"'measurement.image_size' must be [width, height] in pixels (got {self.image_size})")
        _at_most("a side of measurement.image_size", max(self.image_size or [1]), MOST_SIDE)


@dataclass
class FiguresConfig:
    """How figures are drawn, and which ones beside those of the experiment (entry points of ``vlmbench.figures``)."""

    extra: list[str] = field(default_factory=list)
    style: str = "page"
    width: float | None = None
    font_size: float | None = None
    stylesheet: str | None = None
    formats: list[str] = field(default_factory=lambda: ["png", "pdf"])
    dpi: int = 200

    def __post_init__(self) -> None:
        if self.style != MISSING:
            self.chosen()

    def chosen(self) -> FigureStyle:
        """The style that these settings ask for.

        Raises:
            ConfigError: a value is out of its range.
        """
        return FigureStyle(
            name=self.style,
            width_in=self.width,
            font_pt=self.font_size,
            stylesheet=self.stylesheet,
            formats=tuple(self.formats),
            dpi=self.dpi,
        )


@dataclass
class RunConfig:
    """The root of the configuration."""

    task: str = MISSING
    name: str = MISSING
    report: str = MISSING
    workload: str = MISSING
    seed: int = MISSING
    output_dir: str | None = MISSING
    dry_run: bool = MISSING
    target_device: str | None = MISSING
    target_memory_gib: float | None = MISSING
    break_lock: bool = MISSING
    detach: bool = MISSING
    progress: bool | None = MISSING
    device_peaks: str = MISSING
    allow_unlike: bool = MISSING
    export_weights: bool = False
    runs: str | None = MISSING
    phase2_results: str | None = MISSING
    phase3_results: str | None = MISSING
    baseline: str | None = MISSING
    candidate: str | None = MISSING
    threshold: float = MISSING
    gate: list[str] | None = None
    save_baseline: str | None = MISSING
    baselines: str = MISSING
    latency_ms: float | None = MISSING
    percentile: float = MISSING
    metric: str = MISSING
    confirm: bool = MISSING
    objective: Any = MISSING
    parts: dict[str, list[str]] = field(default_factory=dict)
    output: OutputConfig = MISSING
    measurement: MeasurementConfig = MISSING
    runtime: RuntimeConfig = MISSING
    load: LoadConfig = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    sweep: Any = MISSING
    intervention: Any = MISSING
    probe: dict[str, Any] = field(default_factory=dict)
    tracker: Any = MISSING
    figures: FiguresConfig = field(default_factory=FiguresConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:  # what torch and numpy both take
            raise ValueError(f"'seed' must be 0 or more and below 2^63 (got {self.seed})")
        _one_of("task", self.task, TASKS)
        _one_of("report", self.report, REPORTS)
        _one_of("workload", self.workload, WORKLOADS)
        _one_of("device_peaks", self.device_peaks, ("auto", "table", "measured", "none"))
        _at_least("target_memory_gib", self.target_memory_gib, 0)
        _at_least("seed", self.seed, 0)
        if self.latency_ms is not None and self.latency_ms != MISSING and not self.latency_ms > 0:
            raise ValueError(f"'latency_ms' must be above 0 (got {self.latency_ms:g})")
        if self.percentile != MISSING and not 1 <= self.percentile < 100:
            raise ValueError(f"'percentile' must be 1 or more and below 100: 95 is P95 (got {self.percentile:g})")
        if self.metric != MISSING:
            _one_of("metric", self.metric, LATENCIES)
        if self.objective != MISSING:
            check_names(self.objective, self.report)
        for name in self.gate or ():
            _one_of("gate", name, COMPARED_TIMES)
        if self.threshold != MISSING and not 0 <= self.threshold < 1:
            raise ValueError(
                f"'threshold' must be a share, 0 or more and below 1: 0.03 is 3 % (got {self.threshold:g})"
            )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"'{name}' must be one of {', '.join(allowed)} (got {value!r})")


def _check_engine(name: str) -> None:
    """Refuse an engine that is neither ours nor an installed plug-in's.

    Raises:
        ValueError: with the engines that there are.
    """
    if name not in ENGINES:
        _one_of("runtime.engine", name, (*ENGINES, *sorted(plugins.installed("vlmbench.engines"))))


def _at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:
        raise ValueError(f"'{name}' must be {least:g} or more (got {value:g})")


def _at_most(name: str, value: float | None, most: int) -> None:
    if value is not None and value > most:
        raise ValueError(f"'{name}' must be {most:,} or less (got {value:,})")


TASKS = (
    "profile", "study", "first_steps", "budget", "anatomy", "export", "status", "collect", "cancel", "report",
    "compare",
)  # fmt: skip
LATENCIES = ("T_request", "T_total", "TTFT", "TTFT_model")
QUESTIONS = ("export", "status", "collect", "cancel", "report", "compare")
"""Tasks that measure nothing: they have no run directory, and so no outcome, of their own."""
REPORTS = ("phase1", "phase2", "phase3", "interventions", "none")
OUTPUT_POLICIES = ("auto", "forced", "natural")
ENGINES = ("transformers", "cudagraph", "vllm", "endpoint")
CAPTURED = ("vision_encoder", "projector", "language_model")
LOADS = ("none", "closed", "open")
ARRIVALS = ("poisson", "constant", "trace")
BATCHES = ("different", "copies")
WORKLOADS = ("dataset", "controlled")
