"""Kernels are sorted to stages: by planted intervals, and by a real trace of the planted and of the tiny model."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbench.errors import MeasurementError
from vlmbench.machine.installation import conf_dir
from vlmbench.probes.attribution import Work, busy_by_stage, by_stage, self_times, top, union
from vlmbench.probes.kernels import KernelProbe, device_values
from vlmbench.probes.perfetto import perfetto_trace
from vlmbench.probes.stages import Kind, Segment, cut, segments
from vlmbench.probes.trace import MARK, read_trace
from vlmbench.runner.execution import complete, in_memory, prepare
from vlmbench.runner.plan import with_output
from vlmbench.schema import TOTAL_STAGES
from vlmbench.testing.planted import PlantedModel, Times, request

PIECES = [
    Segment("setup", 0, 10),
    Segment("vision_encoder", 10, 20),
    Segment("LLM_prefill", 20, 30),
    Segment("LLM_decode", 30, 60),
    Segment("residual", 60, 61),
]


def kernel(begin: float, end: float, launched: float, call: int | None = None, *, is_kernel: bool = True) -> Work:
    return Work("k", begin, end, launched, call, is_kernel)


def test_a_kernel_belongs_to_the_stage_that_launched_it_not_to_the_one_it_runs_in() -> None:
    work = [kernel(25, 35, launched=12, call=1), kernel(40, 45, launched=31, call=2)]
    busy = busy_by_stage(work, PIECES)
    assert busy["vision_encoder"].busy == 10
    assert busy["LLM_prefill"].busy == 0
    assert busy["LLM_decode"].busy == 5
    assert busy["total"].busy == 15


def test_overlapping_kernels_count_once_and_copies_are_busy_but_no_kernels() -> None:
    work = [
        kernel(31, 35, launched=30, call=1),
        kernel(33, 37, launched=30.5, call=2),  # another stream
        kernel(36, 38, launched=31, call=3, is_kernel=False),
    ]
    found = busy_by_stage(work, PIECES)["LLM_decode"]
    assert (found.busy, found.kernels, found.launches) == (7, 2, 2)


def test_one_call_can_launch_many_kernels() -> None:
    """A CUDA graph; and a kernel without a known call counts as a launch of its own."""
    work = [kernel(40 + i, 40.5 + i, launched=31, call=7) for i in range(5)] + [kernel(50, 51, launched=50)]
    found = busy_by_stage(work, PIECES)["LLM_decode"]
    assert (found.kernels, found.launches, found.busy) == (6, 2, 3.5)


def test_work_launched_before_or_after_the_run_is_left_out() -> None:
    work = [kernel(-5, -1, launched=-6), kernel(-2, 5, launched=-3), kernel(62, 70, launched=62)]
    assert by_stage(work, PIECES) == {}
    assert busy_by_stage(work, PIECES)["total"].busy == 0


intervals = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)).map(lambda x: (x[0], x[0] + x[1])), max_size=40)


@given(intervals)
def test_union_equals_the_count_of_covered_units(spans: list[tuple[int, int]]) -> None:
    assert union(spans) == len({unit for begin, end in spans for unit in range(begin, end)})


@given(intervals, st.randoms(use_true_random=False))
def test_union_does_not_depend_on_order_or_duplicates(spans: list[tuple[int, int]], random: Any) -> None:
    shuffled = [*spans, *spans]
    random.shuffle(shuffled)
    assert union(shuffled) == union(spans) <= sum(end - begin for begin, end in spans)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30), st.integers(0, 20)), max_size=40))
def test_the_whole_is_at_most_the_sum_of_its_stages(kernels: list[tuple[int, int, int]]) -> None:
    work = [kernel(at + lag, at + lag + length, launched=at) for at, lag, length in kernels]
    busy = busy_by_stage(work, PIECES)
    total = busy.pop("total")
    assert max(b.busy for b in busy.values()) <= total.busy <= sum(b.busy for b in busy.values())
    assert total.kernels == sum(b.kernels for b in busy.values()) == len(work)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[tuple[Kind, float]], int]:
    """Marks of a run: optional vision work in tiles, the projector after or inside the tower, some tokens."""
    kinds: list[Kind] = [Kind.START]
    inside = draw(st.booleans())
    project = [Kind.ENTER_PROJECTOR, Kind.EXIT_PROJECTOR]
    for _ in range(draw(st.integers(0, 3))):
        tower = [Kind.ENTER_VISION, *(project if inside else []), Kind.EXIT_VISION]
        kinds += tower if inside else tower + project
    tokens = draw(st.integers(1, 5))
    for _ in range(tokens):
        kinds += [Kind.ENTER_LANGUAGE, Kind.EXIT_LANGUAGE, Kind.TOKEN]
    kinds.append(Kind.END)
    steps = draw(st.lists(st.integers(0, 50), min_size=len(kinds), max_size=len(kinds)))
    times = [float(sum(steps[: i + 1])) for i in range(len(kinds))]
    return list(zip(kinds, times, strict=True)), tokens


@given(timelines())
def test_pieces_add_up_to_the_stages_and_leave_no_gap(timeline: tuple[list[tuple[Kind, float]], int]) -> None:
    marks, tokens = timeline
    pieces = segments(marks, num_output_tokens=tokens)
    stages = cut(marks, num_output_tokens=tokens)
    for stage in TOTAL_STAGES:
        length = sum(p.end - p.begin for p in pieces if p.stage == stage)
        assert length == (getattr(stages, f"T_{stage}") or 0.0)
    assert all(a.end == b.begin for a, b in pairwise(pieces))
    assert (pieces[0].begin, pieces[-1].end) == (marks[0][1], marks[-1][1])


def test_a_trace_without_enough_tokens_is_refused() -> None:
    with pytest.raises(MeasurementError, match="1 tokens where 2 came out"):
        segments([(Kind.START, 0), (Kind.TOKEN, 1), (Kind.END, 2)], num_output_tokens=2)


def test_self_times_of_nested_operators() -> None:
    def operator(name: str, begin: float, end: float) -> Work:
        return Work(name, begin, end, begin)

    nested = [
        operator("b", 1, 4),
        operator("a", 0, 10),
        operator("c", 2, 3),
        operator("d", 5, 6),
        operator("e", 10, 12),
    ]
    assert {op.name: time for op, time in self_times(nested)} == {"a": 6, "b": 2, "c": 1, "d": 1, "e": 2}


def test_top_is_longest_first() -> None:
    assert top([("a", 1), ("b", 5), ("a", 2), ("c", 0.5)], 2) == [("b", 1, 5), ("a", 2, 3)]


def event(cat: str, name: str, ts: float, dur: float, **extra: Any) -> dict[str, Any]:
    args = extra.pop("args", {})
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 4, "tid": 4, "args": args} | extra


def planted_gpu_events() -> list[dict[str, Any]]:
    """As torch.profiler exports them from a CUDA machine, µs: 1 ms setup, 2 vision, 1 projector, 2 prefill, 4 decode."""
    base = 5e12
    marks = [
        ("START", 0), ("ENTER_FORWARD", 500), ("ENTER_VISION", 1000), ("EXIT_VISION", 3000), ("ENTER_PROJECTOR", 3000),
        ("EXIT_PROJECTOR", 4000), ("ENTER_LANGUAGE", 4100), ("EXIT_FORWARD", 5900), ("TOKEN", 6000),
        ("ENTER_FORWARD", 6100), ("EXIT_FORWARD", 9900), ("TOKEN", 10000), ("END", 10500),
    ]  # fmt: skip
    launches = [(1200, 1), (3500, 2), (4500, 3), (7000, 4)]
    kernels = [(1300, 1000, 1), (3600, 600, 2), (4600, 1500, 3), (7100, 800, 4)]
    gpu = {"pid": 0, "tid": 7}
    return [
        {"ph": "M", "name": "process_name", "ts": base, "pid": 4, "tid": 0, "args": {"name": "python"}},
        *(event("user_annotation", MARK + name, base + t, 3) for name, t in marks),
        *(event("cuda_runtime", "cudaLaunchKernel", base + t, 5, args={"correlation": c}) for t, c in launches),
        *(event("kernel", f"k{c}", base + t, d, args={"correlation": c, "device": 0}, **gpu) for t, d, c in kernels),
        event("gpu_memcpy", "Memcpy", base + 8000, 100, args={"correlation": 99, "device": 0}, **gpu),
        event("cpu_op", "aten::mm", base + 1100, 200),
        event("Trace", "PyTorch Profiler (0)", base, 11000, pid="Spans", tid="x"),
    ]


def test_a_planted_gpu_trace_gives_the_planted_shares() -> None:
    trace = read_trace(planted_gpu_events())
    pieces = segments(trace.marks, num_output_tokens=2)
    times = {"T_setup": 1.0, "T_vision_encoder": 2.0, "T_projector": 1.0, "T_LLM_prefill": 2.0, "T_LLM_decode": 4.0}
    values = device_values(trace, pieces, times | {"T_total": 10.5})
    expected = {"setup": 1.0, "vision_encoder": 0.5, "projector": 0.4, "LLM_prefill": 0.25, "LLM_decode": 1 - 0.9 / 4}
    assert {s: values[f"launch_bound_{s}"] for s in expected} == pytest.approx(expected)
    assert values["launch_bound_total"] == pytest.approx(1 - 4.0 / 10.5)
    assert values["busy_total"] == pytest.approx(4.0)
    assert values["kernels_total"] == values["launches_total"] == 4
    assert values["unlinked_kernels"] == 1  # the copy
    assert "launch_bound_residual" not in values


def test_perfetto_tracks_name_the_stages_and_hold_no_bookkeeping() -> None:
    trace = read_trace(planted_gpu_events())
    pieces = segments(trace.marks, num_output_tokens=2)
    events = perfetto_trace(trace, pieces)["traceEvents"]
    names = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    assert list(names) == ["stages (host)", "tokens (host)", "stages (GPU 0)"]
    on_host = [(e["name"], e["ts"], e["dur"]) for e in events if e.get("cat") == "stage" and e["tid"] == 1]
    assert on_host == [
        ("setup", 0, 1000), ("vision_encoder", 1000, 2000), ("projector", 3000, 1000), ("LLM_prefill", 4000, 2000),
        ("LLM_decode", 6000, 4000), ("residual", 10000, 500),
    ]  # fmt: skip
    on_gpu = [(e["name"], e["ts"], e["dur"]) for e in events if e.get("cat") == "stage" and e["tid"] == 10]
    assert on_gpu == [
        ("vision_encoder", 1300, 1000), ("projector", 3600, 600), ("LLM_prefill", 4600, 1500), ("LLM_decode", 7100, 1000)
    ]  # fmt: skip
    stages = [e["args"]["stage"] for e in events if e.get("cat") == "kernel"]
    assert stages == ["vision_encoder", "projector", "LLM_prefill", "LLM_decode"]
    assert not any(e["name"].startswith(MARK) or e.get("cat") == "Trace" for e in events)


def watched(model: Any, probe: KernelProbe, asked: Any) -> dict[str, Any]:
    asked = with_output(in_memory(asked), probe.max_output_tokens)  # as the measurement loop does
    outcome = complete(model, prepare(model, asked), [probe], [])
    return outcome.values | {"flags": outcome.flags}


def stage_slices(path: Path) -> dict[str, float]:
    """Length of each stage on the trace's first track, ms."""
    lengths: dict[str, float] = {}
    for e in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        if e.get("cat") == "stage" and e["tid"] == 1:
            lengths[e["name"]] = lengths.get(e["name"], 0.0) + e["dur"] / 1e3
    return lengths


def test_a_real_trace_of_the_planted_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    times = Times(setup=3, vision=8, projector=5, prefill=9, decode=4)
    row = watched(PlantedModel(times), KernelProbe(max_tokens=None, trace_dir=str(tmp_path / "traces")), request(4))
    assert row["T_vision_encoder"] >= times.vision
    assert row["T_LLM_decode"] >= 3 * times.decode
    assert not any(name.startswith(("busy_", "launch_bound_", "kernels_")) for name in row)
    assert row["top_kernels_of"] == "host operators"
    assert row["trace_file"] == "traces/trace_001.json.gz"
    events = json.loads(gzip.decompress((tmp_path / row["trace_file"]).read_bytes()))["traceEvents"]
    assert sum(e.get("cat") == "stage" and e["tid"] == 2 for e in events) == 4  # tokens
    assert "USDT" not in capfd.readouterr().err


def test_the_traces_clock_tells_the_stages_that_the_timeline_tells(tmp_path: Path) -> None:
    """Each mark is read on two clocks, one after the other; a busy machine can come in between, so the best counts."""
    model, probe = PlantedModel(), KernelProbe(trace_dir=str(tmp_path))
    worst = []
    for _ in range(12):
        row = watched(model, probe, request(3))
        slices = stage_slices(tmp_path.parent / row["trace_file"])
        worst.append(max(abs(slices[stage] - row[f"T_{stage}"]) for stage in TOTAL_STAGES))
    assert min(worst) < 0.5


def test_a_second_trace_gets_a_file_of_its_own_and_no_hook_stays(tmp_path: Path) -> None:
    model, probe = PlantedModel(), KernelProbe(trace_dir=str(tmp_path))
    files = [watched(model, probe, request(2))["trace_file"] for _ in range(2)]
    assert files == [f"{tmp_path.name}/trace_001.json.gz", f"{tmp_path.name}/trace_002.json.gz"]
    for module in model.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_failing_run_leaves_no_profiler_running() -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        watched(PlantedModel(fail=fail), KernelProbe(), request(2))
    assert watched(PlantedModel(), KernelProbe(), request(2))["num_output_tokens"] == 2


def test_a_trace_never_ends_a_run_from_inside(tiny: Any) -> None:
    """Whoever shares the model over several processes goes on to the length that was asked for."""
    outcome = complete(tiny, prepare(tiny, in_memory(tiny_request(6))), [KernelProbe(max_tokens=2, cpu=True)], [])
    assert outcome.values["num_output_tokens"] == 6
    assert KernelProbe(max_tokens=2).max_output_tokens == 2


@pytest.mark.parametrize(("option", "value"), [("max_tokens", 1), ("top", 0)])
def test_options_are_checked(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"'{option}' must be"):
        KernelProbe(**{option: value})


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_tiny("cpu")


def load_tiny(device: str) -> Any:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from vlmbench.cli import config, validate
    from vlmbench.models.loading import load
    from vlmbench.models.runtime import Runtime

    config.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        node = compose("config", ["model=tiny"]).model
    OmegaConf.resolve(node)
    return load(validate.build(node), Runtime(device=device))


def tiny_request(tokens: int) -> Any:
    import io

    import numpy as np
    from PIL import Image

    from vlmbench.request import ImageSource, Output, Request, Sample

    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(data, "PNG")
    image = ImageSource(name="noise", read=data.getvalue)
    sample = Sample(sample_id="s", question="what is this?", images=(image,))
    return Request(sample=sample, output=Output(max_new_tokens=tokens, forced=True))


def test_a_real_trace_of_the_tiny_model(tiny: Any, tmp_path: Path) -> None:
    row = watched(tiny, KernelProbe(max_tokens=3, top=4, trace_dir=str(tmp_path)), tiny_request(6))
    assert (row["max_new_tokens"], row["num_output_tokens"]) == (3, 3)  # asked for less, and the row says so
    tables = row["top_kernels"]
    assert set(TOTAL_STAGES) <= set(tables)
    assert all(len(table) <= 4 for table in tables.values())
    names = {name for stage in ("vision_encoder", "LLM_decode") for name, _, _ in tables[stage]}
    assert names & {"aten::addmm", "aten::mm", "aten::mkldnn_convolution", "aten::convolution"}
    slices = stage_slices(tmp_path.parent / row["trace_file"])
    for stage in TOTAL_STAGES:
        assert 0 < sum(ms for _, _, ms in tables[stage]) <= slices[stage] * 1.001
    json.dumps(row)


@pytest.mark.gpu
def test_a_real_trace_on_a_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = load_tiny("cuda")
    for _ in range(3):
        complete(model, prepare(model, in_memory(tiny_request(6))), [], [])
    row = watched(model, KernelProbe(trace_dir=str(tmp_path)), tiny_request(6))
    assert row["unlinked_kernels"] <= 0.01 * row["kernels_total"]
    assert row["kernels_LLM_decode"] > row["kernels_projector"] > 0
    for stage in ("vision_encoder", "projector", "LLM_prefill", "LLM_decode", "total"):
        assert 0 < row[f"busy_{stage}"] <= row[f"T_{stage}"] * 1.02, stage
        assert -0.02 <= row[f"launch_bound_{stage}"] < 1, stage
    assert row["top_kernels_of"] == "device kernels"
