"""The measurement loop on a planted model: what is measured, how often, in which order, and what failures become."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmbench.data.opening import watched
from vlmbench.errors import UnfitModelError, UnreachablePointError
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.records.attempts import BEGUN_NAME, FORESIGHT, Attempts
from vlmbench.records.outcome import OutcomeFile
from vlmbench.records.reading import iter_rows
from vlmbench.records.store import RecordStore
from vlmbench.request import Output, Request, Sample
from vlmbench.runner.guards import much_larger
from vlmbench.runner.loop import Runner
from vlmbench.runner.plan import Knobs, Series, SeriesState, dataset_series, no_slope, sweep_series, vision_counts
from vlmbench.runner.warmup import Warmup
from vlmbench.session.ending import conclude
from vlmbench.stopping import Stopping
from vlmbench.sweep import Sweep
from vlmbench.testing.planted import PlantedModel, Samples, SimulatedTime, Times

FAST = Times(setup=0.05, vision=0.2, projector=0.1, prefill=0.2, decode=0.05, loop=0.02, tail=0.01, preprocess=0.02)
KNOBS = Knobs(output=Output(max_new_tokens=3, forced=True), batch="copies")


class Silent:
    def __init__(self) -> None:
        self.expected = self.done = 0

    def expect(self, runs: int) -> None:
        self.expected += runs

    def advance(self, point_id: str, runs: int = 1, *, earlier: bool = False) -> None:
        self.done += runs

    def end(self, point_id: str) -> None:
        self.ended = point_id


def measure(directory: Path, model: Any, series: list[Series], **options: Any) -> tuple[list[SeriesState], list[dict]]:
    with RecordStore(directory) as store:
        runner = Runner(
            model=model,
            probes=[TimelineProbe()],
            store=store,
            warmup=options.pop("warmup", Warmup()),
            seed=0,
            progress=options.pop("progress", Silent()),
            **options,
        )
        states = runner.run(series)
    return states, list(iter_rows(directory))


def dataset(n: int, **options: Any) -> list[Series]:
    defaults = {"repeats": 1, "bare_every": 1, "reference": 1}
    return dataset_series(Samples(n, options.pop("corrupt", ())), KNOBS, **(defaults | options))


def sweep(axes: dict[str, Any], **rule: Any) -> list[Series]:
    stopping = Stopping(**({"min_samples": 3, "max_samples": 5, "min_time_s": 0, "max_time_s": 5} | rule))
    return sweep_series(Samples(1), 0, KNOBS, Sweep(name="s", axes=axes), stopping=stopping, bare_every=1)


def measured(rows: list[dict]) -> list[dict]:
    return [r for r in rows if r["status"] == "ok"]


def test_each_sample_once_with_its_reference_and_bare_pairs(tmp_path: Path) -> None:
    progress = Silent()
    states, rows = measure(tmp_path, PlantedModel(FAST), dataset(6), progress=progress)
    counts = Counter((r["point_id"], r["mode"]) for r in measured(rows))
    assert counts == {
        ("dataset", "instrumented"): 6,
        ("dataset", "bare"): 6,
        ("reference", "instrumented"): 6,
        ("reference", "bare"): 6,
    }
    assert len({r["sample_id"] for r in measured(rows) if r["point_id"] == "dataset"}) == 6
    assert {s.ended for s in states} == {"all_measured"}
    assert progress.done == progress.expected == 12


def test_the_first_run_is_cold_and_warmups_come_before_anything_measured(tmp_path: Path) -> None:
    _, rows = measure(tmp_path, PlantedModel(FAST), dataset(3))
    statuses = [r["status"] for r in rows]
    assert statuses[0] == "cold"
    assert statuses.count("cold") == 1
    assert 1 <= statuses.count("warmup") <= 4
    assert statuses.index("ok") > max(i for i, s in enumerate(statuses) if s != "ok")  # one shape here


def test_each_shape_is_warmed(tmp_path: Path) -> None:
    _, rows = measure(tmp_path, PlantedModel(FAST), sweep({"vision_tokens": [4, 8, 12]}))
    for point in ("vision_tokens=4", "vision_tokens=8", "vision_tokens=12"):
        assert any(r["status"] in ("warmup", "cold") for r in rows if r["point_id"] == point)


def test_points_of_a_sweep_are_interleaved(tmp_path: Path) -> None:
    _, rows = measure(tmp_path, PlantedModel(FAST), sweep({"vision_tokens": [4, 8, 12]}))
    order = [r["point_id"] for r in measured(rows) if r["mode"] == "instrumented"]
    assert {frozenset(order[i : i + 3]) for i in (0, 3, 6)} == {frozenset(order)}  # each round holds each point
    assert order[:3] != order[3:6] or order[3:6] != order[6:9]  # in an order of its own


def test_bare_and_instrumented_take_turns_in_going_first(tmp_path: Path) -> None:
    _, rows = measure(tmp_path, PlantedModel(FAST), sweep({"output_tokens": [2]}, min_samples=4))
    modes = [r["mode"] for r in measured(rows)]
    assert modes[0] != modes[2]


def test_stopping_says_why_and_what_was_not_met(tmp_path: Path) -> None:
    states, _ = measure(
        tmp_path, PlantedModel(FAST), sweep({"output_tokens": [2]}, median_interval=0, noise_variation=0, max_samples=4)
    )
    report = states[0].report()
    assert report["ended_by"] == "max_samples"
    assert [u.partition(" ")[0] for u in report["unmet"]] == ["median_interval", "noise_variation"]


def test_a_corrupt_image_is_one_error_row(tmp_path: Path) -> None:
    states, rows = measure(tmp_path, PlantedModel(FAST), dataset(5, corrupt=(2,), reference=None))
    (error,) = [r for r in rows if r["status"] == "error"]
    assert error["sample_id"] == "s2"
    assert "cannot be decoded" in error["reason"]
    assert len({r["sample_id"] for r in measured(rows)}) == 4
    assert (states[0].measured, states[0].failed) == (4, 1)


def test_a_point_that_cannot_be_reached_is_skipped_with_the_reason(tmp_path: Path) -> None:
    def fail(request: Request) -> None:
        if request.vision_tokens == 8:
            raise UnreachablePointError("7 or 9, not 8")

    for _ in range(2):  # a run that goes on finds the same, and says it once
        states, rows = measure(tmp_path, PlantedModel(FAST, fail=fail), sweep({"vision_tokens": [4, 8]}))
        assert states[1].ended == "skipped"
        skipped = [r for r in rows if r["status"] == "skipped"]
        assert [(r["point_id"], r["reason"]) for r in skipped] == [("vision_tokens=8", "7 or 9, not 8")]
    assert any(r["point_id"] == "vision_tokens=4" for r in measured(rows))


def test_out_of_memory_skips_larger_points_after_two(tmp_path: Path) -> None:
    def fail(request: Request) -> None:
        if request.batch_size >= 4:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    points = {"batch_size": [1, 2, 4, 8, 16, 32, 64]}
    states, rows = measure(tmp_path, PlantedModel(FAST, fail=fail), sweep(points))
    ended = {s.series.axes["batch_size"]: s.ended for s in states}
    assert ended[1] not in ("oom", "skipped")
    assert ended[2] not in ("oom", "skipped")
    oom = [n for n, e in ended.items() if e == "oom"]
    assert len(oom) >= 2
    assert all("3 GiB" in r["reason"] for r in rows if r["status"] == "oom")
    # every skipped point is larger than two that ran out of memory
    for n, e in ended.items():
        if e == "skipped":
            assert sum(m <= n for m in oom) >= 2


def test_a_failing_model_ends_a_series_but_not_the_night(tmp_path: Path) -> None:
    def fail(request: Request) -> None:
        if request.vision_tokens == 8:
            raise RuntimeError("kernel of doom")

    states, rows = measure(
        tmp_path, PlantedModel(FAST, fail=fail), sweep({"vision_tokens": [4, 8]}), max_errors_in_a_row=2
    )
    assert {s.series.point_id: s.ended for s in states}["vision_tokens=8"] == "too_many_errors"
    errors = [r["reason"] for r in rows if r["status"] == "error"]
    assert errors == ["RuntimeError: kernel of doom"] * 2
    assert sum(r["point_id"] == "vision_tokens=4" for r in measured(rows)) >= 6


def test_a_model_that_the_engine_cannot_run_ends_the_run_at_its_first_request(tmp_path: Path) -> None:
    def fail(request: Request) -> None:
        raise UnfitModelError("runtime=planted cannot run Planted")

    with pytest.raises(UnfitModelError, match="cannot run Planted"):
        measure(tmp_path, PlantedModel(FAST, fail=fail), dataset(5))
    assert list(iter_rows(tmp_path)) == []


def test_a_stopped_run_continues_where_it_was(tmp_path: Path) -> None:
    model = PlantedModel(FAST)
    progress = Silent()
    states, rows = measure(tmp_path, model, dataset(8), progress=progress, stop_requested=lambda: progress.done >= 5)
    assert {s.ended for s in states} == {"interrupted"}
    first = len(measured(rows))
    assert 0 < first < 32
    states, rows = measure(tmp_path, model, dataset(8))
    keys = [(r["point_id"], r["sample_id"], r["repeat"], r["mode"]) for r in measured(rows)]
    assert len(keys) == len(set(keys)) == 32
    assert {r["session"] for r in rows} == {0, 1}
    before = model.module.runs
    _, rows = measure(tmp_path, model, dataset(8))
    assert model.module.runs == before  # nothing was left to run
    assert len(measured(rows)) == 32


def test_a_resumed_sweep_counts_what_it_had(tmp_path: Path) -> None:
    rule = {"median_interval": 0, "noise_variation": 0, "max_samples": 4}
    measure(tmp_path, PlantedModel(FAST), sweep({"output_tokens": [2]}, **rule))
    states, rows = measure(tmp_path, PlantedModel(FAST), sweep({"output_tokens": [2]}, **rule))
    assert sum(r["mode"] == "instrumented" for r in measured(rows)) == 4
    assert states[0].ended == "max_samples"
    assert states[0].measured == 4


def test_failures_of_other_sessions_do_not_end_a_resumed_series(tmp_path: Path) -> None:
    corrupt = tuple(range(1, 60, 2))
    for finished in (50, None):
        progress = Silent()
        states, rows = measure(
            tmp_path,
            PlantedModel(FAST),
            dataset(60, corrupt=corrupt, reference=None),
            max_errors_in_a_row=20,
            progress=progress,
            stop_requested=lambda finished=finished, progress=progress: finished and progress.done >= finished,
        )
    assert states[0].ended == "all_measured"
    assert states[0].measured == 30
    assert len({r["sample_id"] for r in measured(rows)}) == 30


def test_a_deadline_ends_the_run_cleanly(tmp_path: Path) -> None:
    states, _ = measure(tmp_path, PlantedModel(FAST), dataset(3), deadline_s=0)
    assert {s.ended for s in states} == {"time_limit"}


def test_the_longest_request_is_warmed_first_where_the_cache_keeps_its_length(tmp_path: Path) -> None:
    series, warmup = sweep({"output_tokens": [2, 9, 4]}), Warmup(longest_first=True, output_tokens=None)
    _, rows = measure(tmp_path, PlantedModel(FAST), series, warmup=warmup)
    assert (rows[0]["status"], rows[0]["point_id"], rows[0]["num_output_tokens"]) == ("cold", "output_tokens=9", 9)
    assert len([r for r in rows if r["status"] == "cold"]) == 1
    before = len(rows)
    _, rows = measure(tmp_path, PlantedModel(FAST), series, warmup=warmup)
    assert len(rows) == before  # nothing was left to run, nothing was warmed


@pytest.mark.parametrize("compiles", [True, False])
def test_compiled_runs_after_another_shape_say_so(tmp_path: Path, compiles: bool) -> None:
    model = PlantedModel(FAST)
    model.compiles = compiles
    _, rows = measure(tmp_path, model, sweep({"vision_tokens": [4, 8]}, median_interval=0, noise_variation=0))
    flagged = ["shape_changed" in row.get("flags", ()) for row in rows]
    points = [row["point_id"] for row in rows]
    other = [False, *(a != b for a, b in itertools.pairwise(points))]
    warming = [row["status"] != "ok" for row in rows]
    assert flagged == [compiles and o and not w for o, w in zip(other, warming, strict=True)]
    assert any(flagged) is compiles


def test_a_longest_request_that_does_not_fit_leaves_its_row_and_the_next_is_warmed(tmp_path: Path) -> None:
    def fail(request: Request) -> None:
        if request.output.max_new_tokens >= 9:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    series, warmup = sweep({"output_tokens": [2, 9, 4]}), Warmup(longest_first=True, output_tokens=None)
    states, rows = measure(tmp_path, PlantedModel(FAST, fail=fail), series, warmup=warmup)
    assert [(r["status"], r["point_id"]) for r in rows[:2]] == [("oom", "output_tokens=9"), ("cold", "output_tokens=4")]
    assert {s.series.axes["output_tokens"]: s.ended for s in states}[9] == "oom"
    assert sum(r["status"] == "oom" for r in rows) == 1


@pytest.mark.parametrize("samples", [1, 7, 400, 401, 500, 801, 1000, 4000])
def test_the_reference_is_spread_over_the_whole_data_set(samples: int) -> None:
    _, reference = dataset_series(Samples(samples), KNOBS, repeats=1, bare_every=1, reference=0)
    taken = [r for r in range(samples) if reference.takes_part(r)]
    assert len(taken) == reference.repeats == min(samples, 400)
    gaps = {b - a for a, b in itertools.pairwise(taken)}
    assert len(gaps) <= 2
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert taken[-1] == samples - 1
    assert reference.takes_part(samples), "what an interruption left over comes after the data set"


LONG = Knobs(output=Output(max_new_tokens=20, forced=True))


def test_a_length_of_the_cache_is_warmed_before_it_is_measured(tmp_path: Path) -> None:
    """The first run of a decode step of that length may cost several times a later one."""
    sweeping = Sweep(name="s", axes={"output_tokens": [12, 30, 20, 4]})
    rule = Stopping(min_samples=2, max_samples=2, min_time_s=0)
    series = sweep_series(Samples(1), 0, LONG, sweeping, stopping=rule, bare_every=1)
    _, rows = measure(tmp_path, PlantedModel(FAST), series)
    seen = 0
    for row in rows:
        if row["status"] == "ok":
            assert row["num_output_tokens"] <= seen
            assert "first_seen_length" not in row["flags"]
        seen = max(seen, row["num_output_tokens"])
    whole = [r["num_output_tokens"] for r in rows if r["status"] == "warmup" and r["num_output_tokens"] > 8]
    assert whole == sorted(whole)
    assert whole[-1] == 30, "shorter answers are covered by the longest"


def test_a_data_set_of_one_shape_is_warmed_in_full_once(tmp_path: Path) -> None:
    _, rows = measure(
        tmp_path, PlantedModel(FAST), dataset_series(Samples(5), LONG, repeats=1, bare_every=0, reference=0)
    )
    assert [r["num_output_tokens"] for r in rows if r["status"] == "warmup"].count(20) == 1


def test_without_warmup_a_first_length_is_flagged(tmp_path: Path) -> None:
    series = dataset_series(Samples(5), LONG, repeats=1, bare_every=0, reference=None)
    _, rows = measure(tmp_path, PlantedModel(FAST), series, warmup=Warmup(max_runs=0))
    assert ["first_seen_length" in r["flags"] for r in rows] == [True, False, False, False, False]


def test_the_search_for_a_target_and_a_shapes_first_time_are_not_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimulatedTime()
    clock.install(monkeypatch)
    model = PlantedModel(Times(preprocess=1.0, search=50.0))
    _, rows = measure(tmp_path, model, sweep({"vision_tokens": [4, 8]}))
    assert {r["T_preprocess"] for r in measured(rows)} == {1.0}


def test_costs_that_cannot_be_told_lose_no_measurement(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def annotate(run: Any, values: Any) -> dict[str, Any]:
        raise KeyError("no such kernel")

    states, rows = measure(tmp_path, PlantedModel(FAST), dataset(3, reference=None), annotate=annotate)
    assert (states[0].measured, states[0].failed) == (3, 0)
    assert all("no_costs" in r["flags"] and r["T_total"] > 0 for r in measured(rows))
    assert caplog.text.count("the costs of a run cannot be told") == 1


class OwnRun(TimelineProbe):
    """A probe that gets a run of its own."""

    name = "own"
    own_run = True


def traced(directory: Path, model: Any, series: list[Series], **given: Any) -> tuple[list[SeriesState], list[dict]]:
    with RecordStore(directory) as store:
        probes = [TimelineProbe(), OwnRun()]
        runner = Runner(model=model, probes=probes, store=store, warmup=Warmup(), seed=0, progress=Silent(), **given)
        states = runner.run(series)
    return states, list(iter_rows(directory))


def test_the_first_measured_sample_is_traced(tmp_path: Path) -> None:
    states, rows = traced(tmp_path, PlantedModel(FAST), dataset(4, corrupt=(0,), reference=None))
    assert [r["sample_id"] for r in rows if r["mode"] == "trace"] == ["s1"]
    assert (states[0].measured, states[0].failed) == (3, 1)


def test_a_series_is_traced_as_often_as_asked(tmp_path: Path) -> None:
    _, rows = traced(tmp_path, PlantedModel(FAST), dataset(3), trace_requests=4)
    found = [(r["point_id"], r["sample_id"], r["repeat"]) for r in rows if r["mode"] == "trace"]
    repeated = {sample for point, sample, _ in found if point == "reference"}
    assert [(s, r) for p, s, r in found if p == "dataset"] == [("s0", 0), ("s1", 0), ("s2", 0), ("s0", 1)]
    assert len(repeated) == 1
    assert [r for p, _, r in found if p == "reference"] == [0, 1, 2, 3]


def test_a_time_limit_leaves_the_traces_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedTime()
    clock.install(monkeypatch)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_ns / 1e9)
    model = PlantedModel(replace(FAST, vision=40.0))
    deadline = time.monotonic() + 4.0
    states, rows = traced(tmp_path, model, dataset(10_000), trace_requests=3, deadline_s=deadline)
    assert {state.ended for state in states} == {"time_limit"}
    assert sum(r["mode"] == "trace" for r in rows) == 6


def test_a_trace_that_fails_leaves_its_row_and_spoils_nothing(tmp_path: Path) -> None:
    model = PlantedModel(FAST)

    def fail(request: Request) -> None:
        if model.module.runs >= done:
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    done = 10**9
    series = sweep({"vision_tokens": [4]}, median_interval=0, noise_variation=0, max_samples=3)
    measure(tmp_path, model, series)
    done, model.fail = 0, fail
    states, rows = traced(tmp_path, model, series)
    assert [(r["mode"], r["status"]) for r in rows if r["status"] == "oom"] == [("trace", "oom")]
    assert (states[0].ended, states[0].measured, states[0].failed) == ("max_samples", 3, 0)


def test_memory_of_the_plan_does_not_hold_requests() -> None:
    (series, _) = dataset(100_000)
    index, repeat = next(series.jobs(seed=0))
    assert 0 <= index < 100_000
    assert repeat == 0


@pytest.mark.parametrize(("field", "value"), [("max_runs", -1), ("agreement", 0), ("agreement", 1)])
def test_warmup_refuses(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"'{field}' must be"):
        Warmup(**{field: value})


# ------------------------------------------------------------------------------- deaths, memory of the host, suspension


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[-12:]}",
)
def test_too_little_memory_is_oom_whoever_says_so(tmp_path: Path, error: Exception) -> None:
    def fail(request: Request) -> None:
        if (request.vision_tokens or 0) >= 64:
            raise error

    series = sweep({"vision_tokens": [4, 64, 128, 256]}, max_samples=3, median_interval=0, noise_variation=0)
    _, rows = measure(tmp_path, PlantedModel(FAST, fail=fail), series)
    statuses = {(row["axis_vision_tokens"], row["status"]) for row in rows if row["status"] not in ("cold", "warmup")}
    assert {status for tokens, status in statuses if tokens == 4} == {"ok"}
    assert {status for tokens, status in statuses if tokens > 4} <= {"oom", "skipped"}
    assert sum(status == "oom" for _, status in statuses) >= 2


def begun(directory: Path, deaths: int, point: str, sample: str = "s0") -> Attempts:
    content = {"now": None, "deaths": [[point, sample, "prepare", deaths]] if deaths else []}
    (directory / BEGUN_NAME).write_text(json.dumps(content))
    attempts = Attempts(directory)
    attempts.open()
    return attempts


def test_a_point_in_which_a_process_died_comes_last_and_is_cleared(tmp_path: Path) -> None:
    attempts = begun(tmp_path, 1, "vision_tokens=8")
    series = sweep({"vision_tokens": [4, 8, 16]}, max_samples=3, median_interval=0, noise_variation=0)
    states, rows = measure(tmp_path, PlantedModel(FAST), series, attempts=attempts)
    points = [row["point_id"] for row in rows]
    assert set(points[points.index("vision_tokens=8") :]) == {"vision_tokens=8"}
    assert all(state.measured == 3 for state in states)
    attempts.close()
    assert not (tmp_path / BEGUN_NAME).exists()


def test_a_point_in_which_two_processes_died_is_skipped_with_a_row(tmp_path: Path) -> None:
    attempts = begun(tmp_path, 2, "vision_tokens=8")
    series = sweep({"vision_tokens": [4, 8]}, max_samples=3, median_interval=0, noise_variation=0)
    states, rows = measure(tmp_path, PlantedModel(FAST), series, attempts=attempts)
    (skipped,) = [row for row in rows if row["point_id"] == "vision_tokens=8"]
    assert skipped["status"] == "skipped"
    assert "2 processes in a row died" in skipped["reason"]
    assert BEGUN_NAME in skipped["reason"]
    assert [state.measured for state in states] == [3, 0]


def test_a_sample_in_which_a_process_died_comes_last_of_its_series(tmp_path: Path) -> None:
    attempts = begun(tmp_path, 1, "dataset", "s2")
    _, rows = measure(tmp_path, PlantedModel(FAST), dataset(5, reference=None), attempts=attempts)
    assert {row["sample_id"] for row in rows} == {f"s{i}" for i in range(5)}
    assert rows[-1]["sample_id"] == "s2"


@pytest.mark.parametrize("point", ["dataset", "reference"])
def test_a_request_in_which_two_processes_died_leaves_one_row_and_the_others_go_on(tmp_path: Path, point: str) -> None:
    attempts = begun(tmp_path, 2, point, "s0")
    states, rows = measure(tmp_path, PlantedModel(FAST), dataset(3, repeats=4, reference=0), attempts=attempts)
    (skipped,) = [row for row in rows if row["status"] == "skipped"]
    assert (skipped["point_id"], skipped["sample_id"]) == (point, "s0")
    by_name = {state.series.point_id: state for state in states}
    assert [state.failed for state in states] == [0, 0]
    if point == "dataset":
        assert (by_name["dataset"].measured, by_name["dataset"].left_out, by_name["dataset"].ended) == (
            8, 4, "all_measured",
        )  # fmt: skip
        assert by_name["reference"].measured == 12
    else:
        assert (by_name["reference"].measured, by_name["reference"].ended) == (0, "skipped")
        assert by_name["dataset"].measured == 12
    outcome = OutcomeFile(tmp_path)
    outcome.begin()
    said: list[str] = []
    assert conclude(outcome, states, said.append) == 0
    assert "2 processes in a row died" in said[-1]


def test_a_kill_from_outside_is_not_held_against_a_request_that_was_measured(tmp_path: Path) -> None:
    measure(tmp_path, PlantedModel(FAST), dataset(2, reference=None))
    for _ in range(3):
        content = {"now": ["dataset", "s0", "prepare"], "deaths": [], "oom_kills": None}
        (tmp_path / BEGUN_NAME).write_text(json.dumps(content))
        attempts = Attempts(tmp_path)
        with RecordStore(tmp_path) as store:
            attempts.open(store.has_run_of)
        assert attempts.deaths("dataset") == 0
        attempts.close()


def test_what_runs_is_named_on_disk_while_it_runs(tmp_path: Path) -> None:
    seen: list[Any] = []
    attempts = begun(tmp_path, 0, "")

    def fail(request: Request) -> None:
        seen.append(json.loads((tmp_path / BEGUN_NAME).read_text())["now"])
        raise RuntimeError("no")

    measure(tmp_path, PlantedModel(FAST, fail=fail), dataset(1, reference=None), attempts=attempts)
    assert seen
    assert all(one[:2] == ["dataset", "s0"] and one[2].startswith("instrumented of") for one in seen)
    assert json.loads((tmp_path / BEGUN_NAME).read_text())["now"] is None


def test_a_run_during_which_the_process_was_stopped_says_so(tmp_path: Path) -> None:
    """SIGCONT is what a stopped process is continued by; one that was not stopped gets it without effect."""
    runs = 0

    def stop(request: Request) -> None:
        nonlocal runs
        runs += 1
        if runs == 5:
            os.kill(os.getpid(), signal.SIGCONT)

    before = signal.getsignal(signal.SIGCONT)
    series = dataset(6, reference=None, bare_every=0)
    _, rows = measure(tmp_path, PlantedModel(FAST, fail=stop), series, warmup=Warmup(max_runs=1))
    flagged = [row for row in rows if "suspended" in row["flags"]]
    assert len(flagged) == 1
    assert flagged[0]["status"] == "ok"
    assert signal.getsignal(signal.SIGCONT) == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), ValueError("odd")])
def test_foresight_does_not_end_a_sweep(error: Exception) -> None:
    class Heavy(PlantedModel):
        def prepare(self, request: Request) -> Any:
            if (request.vision_tokens or 0) > 4:
                raise error
            return super().prepare(request)

    series = sweep({"vision_tokens": [4, 64, 128]})
    found = vision_counts(Heavy(FAST), series)
    assert found.counts == (4,)
    assert len(found.unreachable) == 2
    assert "no slope" in str(no_slope(Heavy(FAST), series))


def test_foresight_names_what_it_looks_at_and_passes_over_what_a_process_died_in(tmp_path: Path) -> None:
    looked: list[Any] = []

    class Told(PlantedModel):
        def prepare(self, request: Request) -> Any:
            looked.append(json.loads((tmp_path / BEGUN_NAME).read_text())["now"])
            return super().prepare(request)

    attempts = begun(tmp_path, 1, "vision_tokens=64")
    series = sweep({"vision_tokens": [4, 64, 128]})
    found = vision_counts(Told(FAST), series, attempts)
    assert much_larger(Told(FAST), series, attempts) is None, "two points have no median that says anything"
    assert looked == [[f"vision_tokens={tokens}", "s0", FORESIGHT] for tokens in (4, 128, 4, 128)]
    assert (found.counts, found.passed_over) == ((4, 128), 1)
    assert attempts.deaths("vision_tokens=64") == 1, "it was not looked at, so nothing is known of it"


def test_traces_are_told_of_which_is_made_of_how_many(tmp_path: Path) -> None:
    told: list[str] = []
    traced(tmp_path, PlantedModel(FAST), dataset(3), trace_requests=2, does=told.append)
    assert told == [f"trace {n} of 4, of {of}" for n, of in enumerate(("dataset", "reference") * 2, start=1)]


class Doubled(Samples):
    """Samples of which the third has the id of the first."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), sample_id=f"s{0 if index == 2 else index}")


def test_of_two_samples_of_one_id_one_is_measured_and_the_other_is_told(tmp_path: Path) -> None:
    series = dataset_series(
        watched(Doubled(4), "theirs"), Knobs(output=Output(max_new_tokens=2, forced=True)),
        repeats=1, bare_every=0, reference=None,
    )  # fmt: skip
    for _ in range(2):  # a run that is continued says the same
        with RecordStore(tmp_path) as store:
            Runner(
                model=PlantedModel(Times()), probes=[TimelineProbe()], store=store, warmup=Warmup(max_runs=1), seed=0,
                progress=Silent(),
            ).run(series)  # fmt: skip
        rows = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
        assert sorted(row["sample_id"] for row in rows if row["status"] == "ok") == ["s0", "s1", "s3"]
        errors = {row["sample_id"]: row["reason"] for row in rows if row["status"] == "error"}
        (place,) = errors
        assert place in ("dataset/0", "dataset/2")
        assert errors[place].startswith(f"sample {place[-1]} of data set 'theirs' has the id of sample ")
