"""Checks of the instrument that need a GPU: random weights, no network, JSON lines out, each part below five minutes.

    python scripts/gpu/truth.py side_stream busy overhead --out DIR
    python scripts/gpu/truth.py moe_batch --model molmoe_1b --out DIR
    python scripts/gpu/truth.py all --device cpu --model tiny --runs 4 --tokens 4 --out DIR      # a dry run anywhere

Each part prints JSON lines and appends them to ``DIR/truth.jsonl``; one that cannot be done here says why:

side_stream   the tower works on a side stream that is joined at its end: T_vision_encoder against the planted time
two_gpus      vision on the first GPU (50 ms), projector on the second (10 ms), the host ahead: what the marks give
busy          busy time of one request over ten traces: its relative standard deviation, which the launch bound needs
moe_batch     a batch of eight, identical against different prompts: ms a step, experts touched a layer
energy        mean energy_j of runs with gaps of 0, 50 and 300 ms against one block of the counter
floor         a long prompt of vision tokens: time over the floor of the prefill, below 1 or not
recompiles    compiled decode, bare and instrumented in turn: frames compiled, CUDA graphs captured again and their time
warmup_drift  the first 30 runs after warm-up against the last 30, in fresh processes
overhead      processor time of the launching thread with the instrument over without, in pairs
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from vlmbench.machine.clock import EventClock
from vlmbench.machine.gpu import gpus_of
from vlmbench.models.loading import load
from vlmbench.models.runtime import Runtime
from vlmbench.models.spec import ModelSpec
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.probes.energy import EnergyProbe, measure_idle
from vlmbench.probes.kernels import KernelProbe
from vlmbench.probes.recompiles import RecompilesProbe
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.request import ImageSource, Output, Request, Sample
from vlmbench.runner.costs import annotator, costs_of
from vlmbench.runner.execution import PreparedRun, collector_at_rest, complete, prepare

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
Found = Iterator[dict[str, Any]]


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = list(PARTS) if args.parts == ["all"] else args.parts
    with (args.out / "truth.jsonl").open("a", encoding="utf-8") as lines, collector_at_rest():
        for part in parts:
            began = time.monotonic()
            try:
                for found in PARTS[part](args):
                    write(lines, {"part": part, **found}, began)
            except Exception as error:  # the other parts go on
                write(lines, {"part": part, "failed": f"{type(error).__name__}: {error}"[:500]}, began)
            gc.collect()
            if args.device.startswith("cuda"):
                torch.cuda.empty_cache()


def write(lines: Any, found: Mapping[str, Any], began: float) -> None:
    text = json.dumps({**found, "part_s": round(time.monotonic() - began, 1)}, default=str)
    print(text, flush=True)
    lines.write(text + "\n")
    lines.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"])
    parser.add_argument("--model", default=None, help="default: llava_1_5_7b, molmoe_1b, qwen2_5_vl_7b, by part")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a request")
    parser.add_argument("--runs", type=int, default=60, help="runs (pairs) of a part")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vision", type=int, default=16384, help="vision tokens of the part floor")
    parser.add_argument("--block-s", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=4, help="fresh processes of the part warmup_drift")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------- models and requests


def model_of(args: argparse.Namespace, default: str, **runtime: Any) -> TransformersModel:
    fields = yaml.safe_load((CONF / f"{args.model or default}.yaml").read_text(encoding="utf-8"))
    fields.pop("_target_")
    return load(ModelSpec(**fields), Runtime(device=args.device, **runtime), seed=0)


def request(args: argparse.Namespace, *, number: int = 0, **knobs: Any) -> Request:
    random = np.random.default_rng(number)
    side = (640, 480) if args.device != "cpu" else (112, 112)
    out = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8)).save(out, "JPEG")
    data = out.getvalue()
    image = ImageSource(name=f"random/{number}", read=lambda: data, size=side)
    sample = Sample(sample_id=str(number), question=f"What is number {number} in this picture?", images=(image,))
    return Request(sample=sample, output=Output(max_new_tokens=args.tokens, forced=True), **knobs)


def run(model: TransformersModel, one: Request, probes: Sequence[Any] = ()) -> dict[str, Any]:
    return complete(model, prepare(model, one), probes, []).values


def warm(model: TransformersModel, one: Request, runs: int = 3) -> None:
    for _ in range(runs):
        run(model, one, [TimelineProbe()])


def skipped(why: str) -> Found:
    yield {"skipped": why}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, mean and relative standard deviation."""
    mean = statistics.fmean(values)
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"n": len(values), "median": statistics.median(values), "mean": mean, "relative_sd": sd / mean}


def paired(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Median of a over b, pair by pair, with a 95 % interval from blocks of ten neighbouring pairs."""
    ratios = np.asarray(a) / np.asarray(b)
    random = np.random.default_rng(0)
    length = max(1, min(10, len(ratios) // 4))
    starts = random.integers(0, len(ratios), (2000, -(-len(ratios) // length)))
    index = (starts[:, :, None] + np.arange(length)) % len(ratios)
    draws = np.median(ratios[index.reshape(2000, -1)[:, : len(ratios)]], axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"pairs": len(ratios), "ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}


# --------------------------------------------------------------------------------------------------------------- parts


def side_stream(args: argparse.Namespace) -> Found:
    if not args.device.startswith("cuda"):
        yield from skipped("needs CUDA")
        return
    model = model_of(args, "llava_1_5_7b")
    one = request(args)
    warm(model, one)
    plain = [run(model, one, [TimelineProbe()])["T_vision_encoder"] for _ in range(10)]
    tower = model.module.get_submodule(model.anatomy.vision_encoder[0])
    cycles, side, original = 200_000_000, torch.cuda.Stream(), tower.forward
    slept = []

    def beside(*arguments: Any, **options: Any) -> Any:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            begin.record()
            torch.cuda._sleep(cycles)
            end.record()
        found = original(*arguments, **options)
        torch.cuda.current_stream().wait_stream(side)
        slept.append((begin, end))
        return found

    tower.forward = beside
    seen = [run(model, one, [TimelineProbe()])["T_vision_encoder"] for _ in range(10)]
    torch.cuda.synchronize()
    planted = [begin.elapsed_time(end) for begin, end in slept]
    yield {
        "plain_ms": statistics.median(plain),
        "planted_ms": statistics.median(planted),
        "T_vision_encoder_ms": statistics.median(seen),
        "over_planted": statistics.median(seen) / statistics.median(planted),
    }


def two_gpus(args: argparse.Namespace) -> Found:
    if not args.device.startswith("cuda") or torch.cuda.device_count() < 2:
        yield from skipped("needs two GPUs")
        return
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    rate = cycles_per_ms()
    clock = EventClock([first, second])
    for _ in range(3):
        x = torch.zeros(1, device=first)
        torch.cuda.synchronize(first)
        torch.cuda.synchronize(second)
        clock.begin()
        clock.mark(first)
        with torch.cuda.device(first):
            torch.cuda._sleep(int(50 * rate))
            x = x + 1
        clock.mark(first)
        clock.mark(second)  # reached before its input is there, where nothing waits
        y = x.to(second, non_blocking=True)
        with torch.cuda.device(second):
            torch.cuda._sleep(int(10 * rate))
            y = y + 1
        clock.mark(second)
        torch.cuda.synchronize(first)
        torch.cuda.synchronize(second)
        a, b, c, d = clock.read()
        yield {"vision_ms": b - a, "gap_ms": c - b, "projector_ms": d - c, "planted_ms": [50, 10]}


def cycles_per_ms() -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1_000_000)
    begin.record()
    torch.cuda._sleep(100_000_000)
    end.record()
    torch.cuda.synchronize()
    return 100_000_000 / begin.elapsed_time(end)


def busy(args: argparse.Namespace) -> Found:
    model = model_of(args, "llava_1_5_7b")
    probe = KernelProbe()
    if not probe.applies(model):
        yield from skipped("the kernel probe does not apply here")
        return
    one = request(args)
    warm(model, one)
    shown: dict[str, list[float]] = {}
    for _ in range(10):
        values = run(model, one, [probe])
        for name in ("busy_total", "busy_vision_encoder", "busy_LLM_prefill", "busy_LLM_decode", "T_total"):
            if values.get(name) is not None:
                shown.setdefault(name, []).append(float(values[name]))
    yield from ({"what": name, **spread(values)} for name, values in shown.items())


def moe_batch(args: argparse.Namespace) -> Found:
    model = model_of(args, "molmoe_1b")
    same = prepare(model, request(args, batch_size=args.batch))
    different = batch_of(model, [request(args, number=number) for number in range(args.batch)])
    step: dict[str, list[float]] = {"identical": [], "different": []}
    runs = {"identical": same, "different": different}
    for one in runs.values():
        for _ in range(3):
            complete(model, one, [TimelineProbe()], [])
    for _ in range(args.runs):
        for name, one in runs.items():
            values = complete(model, one, [TimelineProbe()], []).values
            step[name].append(statistics.median(values["ITL"]))
    for name, one in runs.items():
        yield {"what": name, "ms_a_step": spread(step[name]), "experts_a_layer": touched_experts(model, one)}
    yield {"what": "different over identical", **paired(step["different"], step["identical"])}


def batch_of(model: TransformersModel, requests: Sequence[Request]) -> PreparedRun:
    """One batch of different requests."""
    companions = tuple(one.sample for one in requests[1:])
    return prepare(model, replace(requests[0], batch_size=len(requests), companions=companions))


def touched_experts(model: TransformersModel, one: PreparedRun) -> float | None:
    """Distinct experts a layer and decode step, on average; from the routers, in a run of its own."""
    seen: list[int] = []

    def note(module: Any, _: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        chosen = next((p for p in parts if isinstance(p, torch.Tensor) and p.dtype == torch.int64), None)
        if chosen is None and hasattr(module, "top_k"):
            chosen = parts[0].topk(module.top_k, dim=-1).indices
        if chosen is not None and chosen.shape[0] <= args_batch:
            seen.append(int(chosen.unique().numel()))

    args_batch = int(next(v for v in one.prepared.inputs.values() if hasattr(v, "shape")).shape[0])
    routers = [m for m in model.module.modules() if "router" in type(m).__name__.lower()]
    handles = [router.register_forward_hook(note) for router in routers]
    try:
        complete(model, one, [], [])
    finally:
        for handle in handles:
            handle.remove()
    return statistics.fmean(seen) if seen else None


def energy(args: argparse.Namespace) -> Found:
    if not args.device.startswith("cuda"):
        yield from skipped("needs a GPU with an energy counter")
        return
    model = model_of(args, "llava_1_5_7b")
    (gpu,) = gpus_of(model.devices, ())
    one, probe = request(args), EnergyProbe(idle_s=3.0)
    warm(model, one)
    time.sleep(10)  # the board comes to rest
    for gap_s in (0.0, 0.05, 0.3):
        found = []
        for _ in range(args.runs):
            found.append(run(model, one, [probe])["energy_j"])
            time.sleep(gap_s)
        yield {"what": f"aligned, gap {1e3 * gap_s:.0f} ms", "energy_j": spread(found)}
    time.sleep(10)
    idle = measure_idle(lambda: float(gpu.energy_j() or 0), seconds=3.0)
    began, before, count, of_runs = time.perf_counter(), float(gpu.energy_j() or 0), 0, 0.0
    while time.perf_counter() - began < args.block_s:
        of_runs += run(model, one)["T_total"]
        count += 1
    rise, window = float(gpu.energy_j() or 0) - before, time.perf_counter() - began
    integral = gpu.sampled_energy_j(window)
    yield {
        "what": "block", "runs": count, "window_s": window, "idle_w": idle.power_w, "rise_j": rise,
        "integral_j": integral, "energy_j_a_run": (rise - (idle.power_w or 0) * window) / count,
        "busy_share": of_runs / 1e3 / window,
    }  # fmt: skip


def floor(args: argparse.Namespace) -> Found:
    model = model_of(args, "qwen2_5_vl_7b", attn_implementation="sdpa")
    vision = args.vision if args.device != "cpu" else 16
    one = model.resolve(request(replace_tokens(args, 2), vision_tokens=vision))
    warm(model, one)
    costs = annotator(costs_of(model, "auto"))
    for _ in range(5):
        ready = prepare(model, one)
        values = complete(model, ready, [TimelineProbe()], []).values
        told = costs(ready, values)
        least, time_ms = told.get("floor_ms_llm_prefill"), values["T_LLM_prefill"]
        yield {
            "vision_tokens": values["num_vision_tokens"], "T_LLM_prefill": time_ms, "floor_ms": least,
            "over_floor": None if not least else time_ms / least, "flops": told.get("flops_llm_prefill"),
        }  # fmt: skip


def replace_tokens(args: argparse.Namespace, tokens: int) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "tokens": tokens})


def recompiles(args: argparse.Namespace) -> Found:
    if not args.device.startswith("cuda"):
        yield from skipped("needs CUDA: transformers compiles nowhere else")
        return
    model = model_of(args, "llava_1_5_7b", compile=True)
    requests = [request(args), request(replace_tokens(args, max(2, args.tokens // 2)))]
    for one in requests:
        warm(model, one, 4)
    probes = [TimelineProbe(), RecompilesProbe()]
    with captures() as taken:
        for turn in range(2 * max(4, args.runs // 4)):
            one = requests[(turn // 4) % 2]  # four runs of a length, then of the other
            for name, watching in (("instrumented", probes), ("bare", [])):
                taken.clear()
                values = run(model, one, watching)
                gaps = values.get("ITL") or [None]
                yield {
                    "what": name, "turn": turn, "tokens": values["num_output_tokens"], "T_total": values["T_total"],
                    "first_step_ms": gaps[0], "later_step_ms": statistics.median(gaps[1:]) if len(gaps) > 1 else None,
                    "compiled_frames": values.get("compiled_frames"), "captured": len(taken), "capture_ms": sum(taken),
                }  # fmt: skip


@contextmanager
def captures() -> Iterator[list[float]]:
    """Times of each capture of a CUDA graph by inductor's trees, ms."""
    from torch._inductor import cudagraph_trees

    node: Any = cudagraph_trees.CUDAGraphNode
    original, taken = node._record, []

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            taken.append(1e3 * (time.perf_counter() - began))

    node._record = timed
    try:
        yield taken
    finally:
        node._record = original


def warmup_drift(args: argparse.Namespace) -> Found:
    for number in range(args.processes):
        command = [
            sys.executable, __file__, "_drift", "--out", str(args.out), "--device", args.device,
            "--tokens", str(args.tokens), "--runs", str(args.runs), *(["--model", args.model] if args.model else []),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
        line = next((one for one in done.stdout.splitlines() if '"first_ms"' in one), None)
        yield {"process": number, **(json.loads(line) if line else {"failed": done.stderr[-300:]})}


def drift(args: argparse.Namespace) -> Found:
    """One process of ``warmup_drift``: warmed as the measurement loop warms, then 90 runs and more."""
    model, one, last, warmups = model_of(args, "llava_1_5_7b"), request(args), math.nan, 0
    for _ in range(5):
        now, warmups = run(model, one, [TimelineProbe()])["T_total"], warmups + 1
        if abs(now - last) <= 0.05 * min(now, last):
            break
        last = now
    times = [run(model, one, [TimelineProbe()])["T_total"] for _ in range(max(4, 3 * args.runs // 2))]
    part = min(30, len(times) // 2)
    first, end = statistics.median(times[:part]), statistics.median(times[-part:])
    yield {"warmup_runs": warmups, "runs": len(times), "first_ms": first, "last_ms": end, "ratio": first / end}


def overhead(args: argparse.Namespace) -> Found:
    model, one = model_of(args, "llava_1_5_7b"), request(args)
    warm(model, one)
    found: dict[str, list[dict[str, Any]]] = {"with": [], "without": []}
    for turn in range(2 * args.runs):
        order = [("with", [TimelineProbe()]), ("without", [])]
        for name, probes in order if turn % 2 else order[::-1]:
            found[name].append(run(model, one, probes))
    for metric in ("thread_cpu_ms", "T_total"):
        watched, bare = ([float(v[metric]) for v in found[name]] for name in ("with", "without"))
        yield {"metric": metric, **paired(watched, bare), "bare": spread(bare)}
    cpu, total = ([float(v[name]) for v in found["without"]] for name in ("thread_cpu_ms", "T_total"))
    if len(cpu) > 2:
        yield {"metric": "correlation of T_total with thread_cpu_ms, bare", "r": float(np.corrcoef(cpu, total)[0, 1])}


PARTS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "side_stream": side_stream,
    "two_gpus": two_gpus,
    "busy": busy,
    "moe_batch": moe_batch,
    "energy": energy,
    "floor": floor,
    "recompiles": recompiles,
    "warmup_drift": warmup_drift,
    "overhead": overhead,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["_drift"]:
        sys.argv[1:2] = ["warmup_drift"]
        PARTS["warmup_drift"] = drift
    main()
