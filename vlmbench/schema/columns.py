"""The columns of a row: unit, meaning, who writes it, since which release. ``docs/records.md`` is made from this table.

A column whose name holds ``<stage>`` stands for one column a stage. A name that ends in ``*`` stands for every name
that begins so: axes of a sweep, which users name, cannot be listed. A probe of another package may write columns of its
own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from vlmbench.schema.stage_table import COST_STAGES, STAGES, TOTAL_STAGES

_HOLE = "<stage>"
_BUSY = (*TOTAL_STAGES, "residual", "total")
_MARKED = (*TOTAL_STAGES, "decode_forward", "decode_loop")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column, or one family of columns.

    Args:
        name: in ``records.jsonl`` and in phase files; may hold ``<stage>`` or end in ``*``.
        unit: ``ms``, ``B``, ``FLOP`` …; empty for counts, texts and shares.
        meaning: what the value is.
        writer: which part of vlmbench writes it.
        stages: what stands for ``<stage>``.
        label: on axes and in headings; empty for the name itself.
        since: first release that writes it.
        until: last release that wrote it; None where it is still written.
    """

    name: str
    unit: str
    meaning: str
    writer: str
    stages: tuple[str, ...] = ()
    label: str = ""
    since: str = "0.1"
    until: str | None = None

    def __post_init__(self) -> None:
        if (_HOLE in self.name) != bool(self.stages):
            raise ValueError(f"'stages' must be given for a name with {_HOLE}, and only for one (got {self.name!r})")

    def names(self) -> Iterator[str]:
        """The columns that it stands for; a family that ends in ``*`` gives its pattern."""
        if not self.stages:
            yield self.name
        for stage in self.stages:
            yield self.name.replace(_HOLE, stage)


def _written_by(writer: str, *columns: tuple[str, str, str] | tuple[str, str, str, str]) -> tuple[Column, ...]:
    """Columns of one writer from (name, unit, meaning) or (name, unit, meaning, label)."""
    return tuple(
        Column(name=name, unit=unit, meaning=meaning, writer=writer, label="".join(label))
        for name, unit, meaning, *label in columns
    )


def _by_stage(
    writer: str, stages: tuple[str, ...], *columns: tuple[str, str, str], until: str | None = None
) -> tuple[Column, ...]:
    return tuple(
        Column(name=name, unit=unit, meaning=meaning, writer=writer, stages=stages, until=until)
        for name, unit, meaning in columns
    )


def _times(writer: str, names: tuple[str, ...]) -> tuple[Column, ...]:
    chosen = [stage for stage in STAGES if stage.name in names]
    return tuple(
        Column(name=stage.column, unit="ms", meaning=stage.meaning, writer=writer, label=stage.label)
        for stage in chosen
    )


_LOOP, _TIMELINE, _KERNELS, _COSTS = "measurement loop", "probe timeline", "probe kernels", "costs"

COLUMNS: tuple[Column, ...] = (
    *_written_by(
        _LOOP,
        ("schema_version", "", "version of this table's meanings"),
        ("point_id", "", "the sweep's point (vision_tokens=64), 'dataset', or 'reference' (one request repeated)"),
        ("sample_id", "", "the sample's, as its data set names it; empty where a row stands for a whole point"),
        ("repeat", "", "counts the runs of one (point, sample, mode) from 0"),
        ("mode", "", "instrumented (watched), bare (nothing but the clock), trace (times are no latencies)"),
        ("status", "", "ok, cold (first run of the process), warmup, oom, error, skipped"),
        ("session", "", "counts the processes that wrote to this run directory from 0"),
        ("started_unix_s", "s", "wall clock when the run began (or its row was made, where none did), since the epoch"),
        ("flags", "", "known causes of an odd value, and goals that the run missed"),
        ("reason", "", "why the status is not ok"),
        ("runtime", "", "name of the runtime that measured it"),
        ("gpu_uuid", "", "the GPUs that held the model, joined by commas"),
        ("gc", "", "what became of Python's garbage collector during the run: frozen"),
        ("axis_batch_size", "", "target of the sweep's axis batch_size", "batch size"),
        ("axis_vision_tokens", "", "target of the sweep's axis vision_tokens", "vision tokens"),
        ("axis_prompt_tokens", "", "target of the sweep's axis prompt_tokens", "prompt tokens"),
        ("axis_output_tokens", "", "target of the sweep's axis output_tokens", "output tokens"),
        ("axis_images", "", "target of the sweep's axis images", "images"),
        ("axis_turns", "", "target of the sweep's axis turns", "turn of the conversation"),
        ("axis_reuse_cache", "", "target of the sweep's axis reuse_cache: 1 goes on from the earlier turns' cache"),
        ("axis_kv_length", "", "target of the sweep's axis kv_length", "tokens in the cache"),
        ("axis_resolution", "px", "target of the sweep's axis resolution", "image side (pixels)"),
        ("axis_*", "", "target of any other axis of the sweep"),
        ("batch_size", "", "rows of the batch, counted on the output", "batch size"),
        ("batch_of", "", "of a batch: different requests, or copies of one"),
        ("sample_ids", "", "list: samples of a batch of different requests; counts of tokens are then their means"),
        ("input_tokens_each", "", "list: positions of each request of a batch of different ones, without padding"),
        ("vision_tokens_each", "", "list: image positions of each request of such a batch"),
        ("output_tokens_each", "", "list: tokens of each request of such a batch up to its own end"),
        ("padding_tokens", "", "positions of such a batch's prefill that stand for nothing"),
        ("tokens_after_end", "", "tokens of such a batch that were made after a request's own end"),
        ("num_input_tokens", "", "positions of the language model's input, one row", "input tokens"),
        ("num_prompt_tokens", "", "those of them that are text", "prompt tokens"),
        ("num_vision_tokens", "", "image positions that the language model sees", "vision tokens"),
        ("num_cross_attention_tokens", "", "keys that cross-attention layers see", "cross-attention tokens"),
        ("num_vision_patches", "", "patches that the vision encoder sees", "vision patches"),
        ("num_crops", "", "crops, tiles or views that the images were cut into", "crops"),
        ("num_frames", "", "frames of the clip that was shown instead of images", "frames"),
        ("axis_frames", "", "target of the sweep's axis frames", "frames"),
        ("num_images", "", "images of the request", "images"),
        ("num_cached_tokens", "", "those that were in the cache when the run began; of a server by its own count"),
        ("cache_filled_with", "", "random (keys and values of no text: no prefill was run), or earlier turns"),
        ("num_turns", "", "questions of the conversation, of which the run answered the last; absent for one"),
        ("vision_encoded", "", "of a later turn: whether its run encoded the images, by its marks"),
        ("num_output_tokens", "", "new tokens of one row, counted on the output", "output tokens"),
        ("max_new_tokens", "", "the most new tokens that were asked for"),
        ("output_forced", "", "true where exactly max_new_tokens were asked for"),
        ("thread_cpu_ms", "ms", "processor time of the thread that called generate(), within T_total"),
        ("thread_waited_ms", "ms", "time that thread was ready and waited for a processor"),
        ("yardstick_ms", "ms", "processor time of a calculation that never changes, right before the run", "yardstick"),
        ("turn", "", "of processes that take turns (measurement.turns), counted over all of them together from 1"),
        ("switches_voluntary", "", "context switches of that thread because it waited for something"),
        ("switches_involuntary", "", "context switches of that thread because another one got its processor"),
        ("page_faults_minor", "", "page faults of that thread served from memory"),
        ("page_faults_major", "", "page faults of that thread that read a disk"),
        ("processor", "", "of the host that this thread had when the run was over, by its number"),
        ("steal_ms", "ms", "time that the hypervisor gave to others, summed over the machine's processors"),
    ),
    *_times(_LOOP, ("video_decode", "preprocess", "transfer")),
    *_written_by(
        _LOOP,
        ("T_capture", "ms", "graphs captured for this request, before any clock; part of no latency", "capturing"),
        ("T_total", "ms", "one generate() call, host clock, device idle at both ends", "generate()"),
        ("T_request", "ms", "T_total with the host's stages around it, as far as there are", "whole request"),
        ("TTFT", "ms", "request begins → first token ready", "time to first token"),
    ),
    *_times(_LOOP, ("detokenize",)),
    *_times(_TIMELINE, (*_MARKED, "answer_out", "residual")),
    *_written_by(
        _TIMELINE,
        ("T_undone_step", "ms", "decode steps after the last token, thrown away (a stop flag read a step late)"),
        ("TTFT_model", "ms", "generate() entered → first token ready", "time to first token in generate()"),
        ("ITL", "ms", "list: time between consecutive tokens, T − 1 values for T tokens", "time between tokens"),
        ("host_TTFT_model", "ms", "TTFT_model by the host's marks, on a GPU"),
    ),
    *_by_stage(_TIMELINE, _MARKED, ("host_T_<stage>", "ms", "the stage by the host's marks, on a GPU")),
    *_written_by(
        "interventions",
        ("intervention", "", "the arm's method; none for the baseline"),
        ("intervention_arguments", "", "its arguments, name=value joined by commas"),
        ("intervention_role", "", "baseline, method, control"),
        ("intervention_keep", "", "share of vision tokens that the arm was asked to keep", "share kept"),
        ("kept_by_layer", "", "vision tokens in each decoder layer's cache, tokens x layers, first layer first"),
        ("num_vision_tokens_kept", "", "vision tokens in the last decoder layer's cache", "vision tokens kept"),
        ("num_vision_tokens_kept_mean", "", "the same, mean over decoder layers"),
        ("num_decoder_layers_run", "", "decoder layers that hold keys after the run"),
        ("num_forwards", "", "of assisted decoding: forwards that gave the answer, the prefill among them"),
        ("tokens_each_forward", "", "list: tokens that each of them yielded"),
        ("tokens_per_forward", "", "their mean: acceptance length, the model's own token included", "tokens a forward"),
        ("num_drafted_tokens", "", "tokens that were proposed, accepted or not"),
        ("draft_sees_image", "", "whether the draft model was given the image at any forward, as observed"),
        ("between_forwards_ms", "ms", "list: time from one forward's tokens to the next one's; ITL is absent then"),
        ("weight_bytes_*", "B", "weights of a tower as they lie in memory, quantised ones packed, with their scales"),
        ("precision_*", "", "what a tower's linear layers were quantised as; as loaded where they were not"),
        ("attention_kernel_*", "", "attention calls of a tower: backend, mask, dtype; seen in a run of its own"),
        ("output_ids", "", "the first 64 new token ids of the first row"),
        ("T_method", "ms", "an intervention's own work, inside the stages; never taken off them", "method's own time"),
        ("T_method_*", "ms", "the same, inside one stage"),
    ),
    *_written_by(
        "probe memory",
        ("peak_memory_allocated_bytes", "B", "most memory in tensors during generate(), all GPUs of this process"),
        ("peak_memory_reserved_bytes", "B", "most memory held by the allocator, all GPUs of this process"),
        ("peak_rss_bytes", "B", "largest resident set of the process so far"),
    ),
    *_by_stage(
        "probe memory_stages",
        TOTAL_STAGES,
        ("peak_allocated_<stage>_bytes", "B", "most memory in tensors, weights included, all GPUs of this process"),
        ("peak_reserved_<stage>_bytes", "B", "most memory held by the allocator, kept from earlier work included"),
    ),
    *_written_by(
        "probe recompiles", ("compiled_frames", "", "frames that torch.compile took up within the run; 0 once warm")
    ),
    *_written_by(
        "probe clocks",
        ("sm_clock_before_mhz", "MHz", "lowest SM clock of the GPUs right before the run"),
        ("sm_clock_after_mhz", "MHz", "lowest SM clock of the GPUs right after the run"),
        ("memory_clock_after_mhz", "MHz", "lowest memory clock of the GPUs right after the run"),
        ("temperature_before_c", "°C", "highest GPU temperature right before the run"),
        ("temperature_after_c", "°C", "highest GPU temperature right after the run"),
        ("throttled_power_ms", "ms", "time within the run that a GPU was held back by its power limit"),
        ("throttled_thermal_ms", "ms", "time within the run that a GPU was held back by its heat"),
        ("clocks_read_ms", "ms", "what the two readings took, outside the timed region"),
    ),
    *_written_by(
        "probe energy",
        ("energy_j", "J", "energy of one run above idle, all GPUs of all its processes"),
        ("energy_gross_j", "J", "energy of one run, all GPUs, idle power included"),
        ("energy_per_request_j", "J", "energy_j over the rows of the batch"),
        ("energy_per_output_token_j", "J", "energy_j over all output tokens of the batch"),
        ("energy_window_ms", "ms", "time between the two readings, each at a step of the counter"),
        ("energy_integral_j", "J", "energy within that window by sampled power, idle included; from 3 s on"),
        ("idle_power_w", "W", "power of the idle GPUs with the model loaded, subtracted in energy_j"),
        ("energy_resolution_ms", "ms", "how often the counter is brought up to date"),
        ("energy_gpus", "", "GPUs whose energy is summed"),
    ),
    *_by_stage(
        _KERNELS,
        _BUSY,
        ("busy_<stage>", "ms", "time that at least one device worked on it, in a traced run"),
        ("kernels_<stage>", "", "kernels that ran, in a traced run"),
        ("launches_<stage>", "", "host calls that launched kernels, in a traced run"),
    ),
    *_by_stage(
        _KERNELS,
        (*TOTAL_STAGES, "total"),
        ("launch_bound_<stage>", "", "1 − busy / elapsed of the traced run itself: an upper bound"),
    ),
    *_written_by(
        _KERNELS,
        ("top_kernels", "ms", "stage → list of [name, calls, summed ms], longest first"),
        ("top_kernels_of", "", "what top_kernels lists: device kernels, or host operators on a CPU"),
        ("unlinked_kernels", "", "kernels without a launching call in the trace"),
        ("trace_file", "", "the Chrome trace of this run, below the run directory"),
    ),
    *_by_stage(
        _COSTS,
        (*COST_STAGES, "total"),
        ("flops_<stage>", "FLOP", "counted work of the batch, 1 multiply-add = 2; the closed form where not counted"),
        ("flops_<stage>_closed", "FLOP", "the same by closed form"),
        ("bytes_<stage>", "B", "fewest bytes that must move"),
        ("floor_ms_<stage>", "ms", "larger of flops over peak rate and bytes over peak bandwidth"),
    ),
    *_written_by(
        "a load (runtime endpoint or vllm)",
        ("due_s", "s", "when the request should have been sent, on the machine's monotonic clock"),
        ("load_number", "", "of the load that sent it, within its session"),
        ("T_late", "ms", "due until its first byte left (the client's own lateness), or until it joined the engine",
         "sent late by"),
        ("T_end", "ms", "due until the last byte of the answer, or until the engine said that it is over"),
        ("TPOT", "ms", "time from the first chunk with text (the first token) to the last, over the tokens after it",
         "time per output token"),
        ("in_flight_at_start", "", "requests that were unanswered when this one was sent"),
        ("attempt", "", "counts the attempts of a request that is retried, from 0"),
        ("finish_reason", "", "why the answer ended, as the server or the engine says it"),
        ("error_class", "", "connection, tls, disconnected, silence, timeout, http, not_streaming, server_error …"),
    ),
    *_written_by(
        "runtime endpoint",
        ("T_connect", "ms", "opening the connection (TCP, proxy, TLS), before the request was due", "connecting"),
        ("T_send", "ms", "first until last byte of the request handed to the system", "sending"),
        ("T_headers", "ms", "due until the headers of the answer were there"),
        ("T_first_event", "ms", "due until the first chunk of any kind (role, progress, empty), which is no token"),
        ("T_error", "ms", "due until the request had failed"),
        ("T_unattributed", "ms",
         "TTFT minus the server's own figures until the first token; two clocks, so it may be negative"),
        ("num_chunks", "", "chunks that held text"),
        ("chunk_times", "ms", "due until each chunk with text"),
        ("chunk_tokens", "", "tokens of each of them"),
        ("tokens_source", "",
         "server (a count on every chunk), one_each, spread (only the total is known), unknown"),
        ("chunks_role", "", "chunks that only say who speaks"),
        ("chunks_empty", "", "chunks without text"),
        ("chunks_progress", "", "chunks that say how far the prompt is"),
        ("chunks_reasoning", "", "chunks of reasoning text"),
        ("chunks_usage", "", "chunks that hold token counts only"),
        ("coalesced_share", "", "share of gaps between chunks below 0.1 ms: they came out of one read"),
        ("reads", "", "reads that brought the answer"),
        ("client_longest_turn", "ms", "longest time in which the client took no note of arrivals; 0 where below 1"),
        ("connection_reused", "", "the connection had served a request before"),
        ("bytes_sent", "B", "length of the request's body"),
        ("http_status", "", "of the answer"),
        ("pair_contrast", "", "which paired requests it belongs to"),
        ("pair_arm", "", "which of the two it is"),
        ("pair_number", "", "of the pair"),
        ("pair_first", "", "it was sent before the other"),
        ("server_*", "ms", "a figure of the server under its own name; what it means there stands in loads.json"),
    ),
    *_written_by(
        "runtime vllm",
        ("T_schedule", "ms", "of T_total: the scheduler, before and after each step; host clock, summed"),
        ("T_sampling", "ms", "of T_total: choosing tokens; host clock, so on a GPU it may hold the wait for the step"),
        ("T_engine_output", "ms", "of T_total: tokens to text and to the client, step by step; host clock, summed"),
        ("engine_encoder_runs", "", "times that the vision encoder ran"),
        ("engine_steps", "", "under a load: steps that served this request"),
        ("engine_steps_shared", "", "those of them that served others, too: none of their time is split"),
        ("T_preprocess_ahead", "ms", "under a load: its inputs made, before it was due: no part of TTFT and T_request"),
        ("engine_queued_time", "ms", "vLLM's own: queued until scheduled"),
        ("engine_prefill_time", "ms", "vLLM's own: scheduled until first token, vision encoder included"),
        ("engine_decode_time", "ms", "vLLM's own: first token until last token"),
        ("engine_inference_time", "ms", "vLLM's own: scheduled until last token"),
        ("engine_first_token_latency", "ms", "vLLM's own: arrival (generate() entered) until first token, wall clock"),
        ("engine_encoder_forward", "ms", "vLLM's own: encoder and projector between two waits for the device"),
    ),
    *_written_by(
        _COSTS, ("flops_llm_prefill_needed", "FLOP", "of flops_llm_prefill, what a causal kernel needs; for its floor")
    ),
    *_written_by(
        _COSTS,
        ("flops_note", "", "how counted and closed FLOPs agree, and what could not be counted"),
        ("experts_llm_prefill", "", "of a mixture: different experts of a layer that the prefill visited, where seen"),
        ("experts_llm_decode", "", "the same of a decode step, the mean over layers and steps"),
    ),
    *_by_stage(
        _COSTS,
        COST_STAGES,
        ("intensity_<stage>", "FLOP/B", "flops over bytes; computed when read (vlmbench.analysis.derived)"),
        ("mfu_<stage>", "", "needed flops over time and peak rate; computed when read"),
        ("mbu_<stage>", "", "bytes over time and peak bandwidth; computed when read"),
        ("over_floor_<stage>", "", "time over floor_ms; computed when read"),
        ("verdict_<stage>", "", "what bounds the stage; computed when read, with the traced runs' busy time"),
        until="0.1",
    ),
)  # fmt: skip
"""Every column that vlmbench writes or has written, by writer."""


@cache
def _exact() -> dict[str, Column]:
    return {name: column for column in COLUMNS for name in column.names() if not name.endswith("*")}


def column_of(name: str) -> Column | None:
    """Find what is known of a column; None for one that the table does not hold (that of a user's probe)."""
    families = (column for column in COLUMNS if column.name.endswith("*") and name.startswith(column.name[:-1]))
    return _exact().get(name) or next(families, None)


def columns_of(writer: str) -> frozenset[str]:
    """List the columns that one part of vlmbench writes: ``columns_of("probe clocks")``."""
    return frozenset(name for column in COLUMNS if column.writer == writer for name in column.names())


def label_of(name: str, *, unit: bool = False) -> str:
    """Name a column on an axis or in a heading.

    Args:
        unit: add the unit: ``LLM prefill, ms``.

    Returns:
        Its label; where it has none, its name in words: ``axis_top_k`` is ``top k``.
    """
    found = column_of(name)
    words = (found.label if found else "") or name.removeprefix("axis_").removeprefix("num_").replace("_", " ")
    return f"{words}, {found.unit}" if unit and found and found.unit else words
