"""Checks of the instrument that need a GPU: random weights, no network, JSON lines out, ten minutes in all on an H200.

    python scripts/gpu/truth.py all --out DIR
    python scripts/gpu/truth.py side_stream busy overhead --out DIR
    python scripts/gpu/truth.py all --dry --out DIR      # every part on the CPU, tiny model, planted board: two minutes

Each part prints JSON lines and appends them to ``DIR/truth.jsonl`` as soon as it knows them; its last line says
``done``. A part that is done is not run again with the same settings, so the same command goes on where it was cut off
(``--again`` runs it all the same). ``--budget-s`` is shared out: a part takes fewer runs where its share is short. One
that cannot be done here says why:

side_stream   the tower works on a side stream that is joined at its end: T_vision_encoder against the planted time
two_gpus      vision on the first GPU (50 ms), projector on the second (10 ms), the host ahead: what the marks give
overhead      processor time of the launching thread with the instrument over without, in pairs
busy          busy time of one request over ten traces: its relative standard deviation, which the launch bound needs
energy        mean energy_j of runs with gaps of 0, 50 and 300 ms against one block of the counter
recompiles    compiled decode, bare and instrumented in turn: frames compiled, CUDA graphs captured again and their time
floor         a long prompt of vision tokens: time over the floor of the prefill, below 1 or not
moe_batch     a batch of eight, copies against different requests: ms a step, experts that were visited, floor
warmup_drift  the first runs after warm-up against the last, in fresh processes
gpu_tests     all tests that are marked ``gpu``
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
from unittest import mock

import numpy as np
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, whatever vlmbench is installed
from vlmbench.machine.clock import EventClock
from vlmbench.machine.gpu import gpus_of
from vlmbench.models.loading import load
from vlmbench.models.runtime import Runtime
from vlmbench.models.spec import ModelSpec
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.probes import energy as energy_probe
from vlmbench.probes.kernels import KernelProbe
from vlmbench.probes.recompiles import RecompilesProbe
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.request import ImageSource, Output, Request, Sample
from vlmbench.runner.costs import annotator, costs_of
from vlmbench.runner.execution import collector_at_rest, complete, prepare

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
Found = Iterator[dict[str, Any]]


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = list(PARTS) if args.parts == ["all"] else args.parts
    settings = {k: v for k, v in vars(args).items() if k not in ("parts", "out", "again", "budget_s")}
    file = args.out / "truth.jsonl"
    over = set() if args.again else done_before(file, settings)
    total = sum(SHARES.get(part, 1) for part in parts)
    with file.open("a", encoding="utf-8") as lines, collector_at_rest():
        for part in parts:
            if part in over:
                print(json.dumps({"part": part, "skipped": "done before; --again runs it again"}), flush=True)
                continue
            began = time.monotonic()
            args.until = began + args.budget_s * SHARES.get(part, 1) / total
            try:
                skipped_it = False
                for found in PARTS[part](args):
                    write(lines, {"part": part, **found}, began)
                    skipped_it |= "skipped" in found
                if not skipped_it:  # another machine may do it
                    write(lines, {"part": part, "done": True, "settings": settings}, began)
            except Exception as error:  # the other parts go on
                write(lines, {"part": part, "failed": f"{type(error).__name__}: {error}"[:500]}, began)


def done_before(file: Path, settings: Mapping[str, Any]) -> set[str]:
    """Parts that came to their end with these settings."""
    if not file.is_file():
        return set()
    wanted = json.loads(json.dumps(settings, default=str))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {line["part"] for line in lines if line.get("done") and line.get("settings") == wanted}


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
    parser.add_argument("--runs", type=int, default=100, help="runs (pairs) of a part, if its time allows")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vision", type=int, default=16384, help="vision tokens of the part floor")
    parser.add_argument("--block-s", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=2, help="fresh processes of the part warmup_drift")
    parser.add_argument("--budget-s", type=float, default=540.0, help="time for all parts")
    parser.add_argument("--again", action="store_true", help="also parts that are done")
    parser.add_argument("--dry", action="store_true", help="a dry run on the CPU")
    found = parser.parse_args()
    if found.dry:
        found.device, found.model, found.tokens, found.runs, found.batch = "cpu", "tiny", 4, 4, 2
        found.vision, found.block_s, found.processes = 16, 0.5, 1
    return found


def turns(args: argparse.Namespace, most: int, least: int = 4) -> Iterator[int]:
    """Count up to ``most``, or until the part's time is over."""
    for turn in range(most):
        if turn >= least and time.monotonic() > args.until:
            return
        yield turn


# ------------------------------------------------------------------------------------------------- models and requests


_held: dict[str, TransformersModel] = {}


def model_of(args: argparse.Namespace, default: str, **runtime: Any) -> TransformersModel:
    """The model of a part; that of the part before where it is the same."""
    key = f"{args.model or default} {runtime}"
    if key not in _held:
        _held.clear()
        gc.collect()
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
        fields = yaml.safe_load((CONF / f"{args.model or default}.yaml").read_text(encoding="utf-8"))
        fields.pop("_target_")
        _held[key] = load(ModelSpec(**fields), Runtime(device=args.device, **runtime), seed=0)
    return _held[key]


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
    on_gpu = args.device.startswith("cuda")
    model = model_of(args, "llava_1_5_7b")
    one = request(args)
    warm(model, one)
    plain = [run(model, one, [TimelineProbe()])["T_vision_encoder"] for _ in range(10)]
    tower = model.module.get_submodule(model.anatomy.vision_encoder[0])
    original = tower.forward
    slept: list[Any] = []
    tower.forward = _beside(original, slept) if on_gpu else _after_a_wait(original, slept)
    try:
        seen = [run(model, one, [TimelineProbe()])["T_vision_encoder"] for _ in range(10)]
    finally:
        tower.forward = original
    if on_gpu:
        torch.cuda.synchronize()
    planted = [begin.elapsed_time(end) for begin, end in slept] if on_gpu else slept
    yield {
        "plain_ms": statistics.median(plain),
        "planted_ms": statistics.median(planted),
        "T_vision_encoder_ms": statistics.median(seen),
        "over_planted": statistics.median(seen) / statistics.median(planted),
    }


def _beside(original: Callable[..., Any], slept: list[Any]) -> Callable[..., Any]:
    """A tower beside which a side stream works, which is joined at the end."""
    side = torch.cuda.Stream()

    def beside(*arguments: Any, **options: Any) -> Any:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            begin.record()
            torch.cuda._sleep(200_000_000)
            end.record()
        found = original(*arguments, **options)
        torch.cuda.current_stream().wait_stream(side)
        slept.append((begin, end))
        return found

    return beside


def _after_a_wait(original: Callable[..., Any], slept: list[Any]) -> Callable[..., Any]:
    """Without a GPU: a tower that waits for 50 ms."""

    def waits(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        time.sleep(0.05)
        slept.append(1e3 * (time.perf_counter() - began))
        return original(*arguments, **options)

    return waits


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
    for _ in turns(args, 10):
        values = run(model, one, [probe])
        for name in ("busy_total", "busy_vision_encoder", "busy_LLM_prefill", "busy_LLM_decode", "T_total"):
            if values.get(name) is not None:
                shown.setdefault(name, []).append(float(values[name]))
    yield from ({"what": name, **spread(values)} for name, values in shown.items())


def moe_batch(args: argparse.Namespace) -> Found:
    model = model_of(args, "molmoe_1b")
    costs = annotator(costs_of(model, "auto" if args.device.startswith("cuda") else "none"), model)
    first, *others = [request(args, number=number) for number in range(args.batch)]
    companions = tuple(one.sample for one in others)
    runs = {
        "copies": prepare(model, replace(first, batch_size=args.batch)),
        "different": prepare(model, replace(first, batch_size=args.batch, companions=companions)),
    }
    step: dict[str, list[float]] = {name: [] for name in runs}
    last: dict[str, dict[str, Any]] = {}
    for one in runs.values():
        for _ in range(3):
            complete(model, one, [TimelineProbe()], [])
    for _ in turns(args, args.runs):
        for name, one in runs.items():
            last[name] = complete(model, one, [TimelineProbe()], []).values
            step[name].append(statistics.median(last[name]["ITL"]))
    for name, one in runs.items():
        told = costs(one, last[name])
        least = told.get("floor_ms_llm_decode")
        yield {
            "what": name, "ms_a_step": spread(step[name]), "note": told["flops_note"],
            **{key: told.get(key) for key in ("experts_llm_prefill", "experts_llm_decode", "bytes_llm_decode")},
            "floor_ms_llm_decode": least, "over_floor": least and last[name]["T_LLM_decode"] / least,
        }  # fmt: skip
    yield {"what": "different over copies", **paired(step["different"], step["copies"])}


class Planted:
    """A board without a GPU: 150 W always, its counter brought up to date every 20 ms."""

    name = "planted"

    def energy_j(self) -> float:
        return 150 * (time.perf_counter() // 0.02 * 0.02)

    def sampled_energy_j(self, seconds: float) -> float:
        return 150 * seconds


def energy(args: argparse.Namespace) -> Found:
    model = model_of(args, "llava_1_5_7b")
    if args.dry:
        with mock.patch.object(energy_probe, "_gpus_with_counter", return_value=[Planted()]):
            yield from _energies(args, model, Planted(), rest_s=0.1)
    elif not args.device.startswith("cuda"):
        yield from skipped("needs a GPU with an energy counter")
    else:
        (gpu,) = gpus_of(model.devices, ())
        yield from _energies(args, model, gpu, rest_s=8.0)


def _energies(args: argparse.Namespace, model: TransformersModel, gpu: Any, *, rest_s: float) -> Found:
    one, probe = request(args), energy_probe.EnergyProbe(idle_s=min(rest_s + 0.2, 3.0))
    warm(model, one)
    time.sleep(rest_s)  # the board comes to rest
    began, share = time.monotonic(), (args.until - time.monotonic() - args.block_s) / 3
    for number, gap_s in enumerate((0.0, 0.05, 0.3)):
        found = []
        for turn in range(min(args.runs, 40)):
            if turn >= 4 and time.monotonic() > began + (number + 1) * share:
                break
            found.append(run(model, one, [probe])["energy_j"])
            time.sleep(gap_s)
        yield {"what": f"aligned, gap {1e3 * gap_s:.0f} ms", "energy_j": spread(found)}
    time.sleep(rest_s)
    idle = energy_probe.measure_idle(lambda: float(gpu.energy_j() or 0), seconds=min(rest_s, 3.0))
    began, before, count, of_runs = time.perf_counter(), float(gpu.energy_j() or 0), 0, 0.0
    while time.perf_counter() - began < args.block_s:
        of_runs += run(model, one)["T_total"]
        count += 1
    rise, window = float(gpu.energy_j() or 0) - before, time.perf_counter() - began
    yield {
        "what": "block", "runs": count, "window_s": window, "idle_w": idle.power_w, "rise_j": rise,
        "integral_j": gpu.sampled_energy_j(window), "energy_j_a_run": (rise - (idle.power_w or 0) * window) / count,
        "busy_share": of_runs / 1e3 / window,
    }  # fmt: skip


def floor(args: argparse.Namespace) -> Found:
    model = model_of(args, "qwen2_5_vl_7b", attn_implementation="sdpa")
    one = model.resolve(request(replace_tokens(args, 2), vision_tokens=args.vision))
    warm(model, one)
    costs = annotator(costs_of(model, "auto" if args.device.startswith("cuda") else "measured"), model)
    for _ in turns(args, 5):
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
    if not args.device.startswith("cuda") and not args.dry:
        yield from skipped("needs CUDA: transformers compiles nowhere else")
        return
    model = model_of(args, "llava_1_5_7b", compile=not args.dry)
    requests = [request(args), request(replace_tokens(args, max(2, args.tokens // 2)))]
    for one in requests:
        warm(model, one, 4)
    probes = [TimelineProbe(), RecompilesProbe()]
    with captures() as taken:
        for turn in turns(args, 2 * max(4, args.runs // 4), least=8):
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
    _held.clear()  # the other process needs the memory
    gc.collect()
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()
    each = max((args.until - time.monotonic()) / args.processes, 20.0)
    for number in turns(args, args.processes, least=1):
        command = [
            sys.executable, __file__, "_drift", "--out", str(args.out), "--device", args.device, "--again",
            "--tokens", str(args.tokens), "--runs", str(args.runs), "--budget-s", f"{each:.0f}",
            *(["--model", args.model] if args.model else []),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=each + 120)
        line = next((one for one in done.stdout.splitlines() if '"first_ms"' in one), None)
        yield {"process": number, **(json.loads(line) if line else {"failed": done.stderr[-300:]})}


def drift(args: argparse.Namespace) -> Found:
    """One process of ``warmup_drift``: warmed as the measurement loop warms, then as many runs as its time allows."""
    model, one, last, warmups = model_of(args, "llava_1_5_7b"), request(args), math.nan, 0
    for _ in range(5):
        now, warmups = run(model, one, [TimelineProbe()])["T_total"], warmups + 1
        if abs(now - last) <= 0.05 * min(now, last):
            break
        last = now
    times = [run(model, one, [TimelineProbe()])["T_total"] for _ in turns(args, 3 * args.runs // 2, least=6)]
    part = min(30, len(times) // 2)
    first, end = statistics.median(times[:part]), statistics.median(times[-part:])
    yield {"warmup_runs": warmups, "runs": len(times), "first_ms": first, "last_ms": end, "ratio": first / end}


def overhead(args: argparse.Namespace) -> Found:
    model, one = model_of(args, "llava_1_5_7b"), request(args)
    warm(model, one)
    found: dict[str, list[dict[str, Any]]] = {"with": [], "without": []}
    for turn in turns(args, 2 * args.runs):
        order = [("with", [TimelineProbe()]), ("without", [])]
        for name, probes in order if turn % 2 else order[::-1]:
            found[name].append(run(model, one, probes))
        if turn % 25 == 24:
            yield {"so_far": True, **_ratio(found, "thread_cpu_ms")}
    for metric in ("thread_cpu_ms", "T_total"):
        yield _ratio(found, metric)
    cpu, total = ([float(v[name]) for v in found["without"]] for name in ("thread_cpu_ms", "T_total"))
    if len(cpu) > 2:
        yield {"metric": "correlation of T_total with thread_cpu_ms, bare", "r": float(np.corrcoef(cpu, total)[0, 1])}


def _ratio(found: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> dict[str, Any]:
    watched, bare = ([float(v[metric]) for v in found[name]] for name in ("with", "without"))
    return {"metric": metric, **paired(watched, bare), "bare": spread(bare)}


def gpu_tests(args: argparse.Namespace) -> Found:
    _held.clear()
    gc.collect()
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-rs", "tests"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root, timeout=420)
    yield {"rc": done.returncode, "said": done.stdout[-3000:]}


PARTS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "side_stream": side_stream,
    "two_gpus": two_gpus,
    "overhead": overhead,
    "busy": busy,
    "energy": energy,
    "recompiles": recompiles,
    "floor": floor,
    "moe_batch": moe_batch,
    "warmup_drift": warmup_drift,
    "gpu_tests": gpu_tests,
}
SHARES = {"two_gpus": 0.1, "overhead": 3, "energy": 3, "busy": 1.2, "warmup_drift": 2, "gpu_tests": 1.5}
"""Of the time for all parts; 1 where nothing is said."""

if __name__ == "__main__":
    if sys.argv[1:2] == ["_drift"]:
        sys.argv[1:2] = ["warmup_drift"]
        PARTS["warmup_drift"] = drift
    main()
