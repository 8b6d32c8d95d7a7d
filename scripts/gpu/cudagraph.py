"""Measures ``runtime=cudagraph`` against its goals on one GPU, with random weights and without a network.

    python scripts/gpu/cudagraph.py machine tokens decode prefill request overhead --model llava_1_5_7b --out DIR
    python scripts/gpu/cudagraph.py decode --model molmo_7b_d --compile --out DIR
    python scripts/gpu/cudagraph.py encoder --model qwen2_5_vl_7b --runs 10 --out DIR    # is the tower captured?
    python scripts/gpu/cudagraph.py prefill --compile --runs 10 --out DIR    # captured, and compiled before that
    python scripts/gpu/cudagraph.py all --device cpu --narrow --runs 3 --tokens 6 --out DIR    # a dry run anywhere

Each part prints JSON lines and appends them to ``DIR/cudagraph.jsonl``:

machine   copy rate (read and write), rate of matrix-vector products (reads), rate of a large matrix product
tokens    answers of the loop against greedy ``generate()`` on the same inputs; where they part, by how little the
          eager logits of the two tokens differ
decode    ms a token (whole steps, from the marks) over the floor: weights and cache read once at the copy rate
encoder   vision encoder and projector, captured beside eager, for two images of equal shape and other grids: ms, how
          far replays are from what the code gives for new pixels, and why something is not captured
prefill   ms of a prompt of ``--prompt`` tokens over the floor: its FLOPs at the datasheet's and at the measured rate;
          with ``--compile`` also compiled, and both answers against eager ones
request   stages of one request of ``--tokens`` tokens, residual, first step over later ones; eager beside it, in turn
attention us of one layer's attention in a decode step with a mask, 28 heads over 4: groups as they are, side by side,
          and with keys and values repeated; which operator, and how far from float32
overhead  T_total with the instrument over T_total without it, run in pairs; interval from blocks of pairs
levels    ms a token of one request before and after what may move a captured step to its upper level (graphs for a new
          prompt length, and each part of making them by itself) and what may bring it back (pauses, another process's
          context and kernel, memory given back)
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch.utils._pytree import tree_flatten

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, whatever vlmbench is installed
from vlmbench.engines.attention import attention_kernels
from vlmbench.engines.capture import CudaGraphs
from vlmbench.engines.cudagraph import GraphLoop, GraphSettings
from vlmbench.machine.peaks import measure_peaks, table_peaks
from vlmbench.models.loading import load
from vlmbench.models.runtime import Runtime
from vlmbench.models.spec import ModelSpec
from vlmbench.models.transformers_model import TransformersModel
from vlmbench.probes.timeline import TimelineProbe
from vlmbench.request import ImageSource, Output, Request, Sample
from vlmbench.runner.execution import PreparedRun, collector_at_rest, complete, prepare

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
STAGES = ("T_setup", "T_vision_encoder", "T_projector", "T_LLM_prefill", "T_LLM_decode", "T_residual", "T_total")


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = list(PARTS) if args.parts == ["all"] else args.parts
    with (args.out / "cudagraph.jsonl").open("a", encoding="utf-8") as lines, torch.no_grad():
        for part in parts:
            began = time.monotonic()
            for found in PARTS[part](args):
                line = {"part": part, "model": args.model, "compile": args.compile, **found}
                line["part_s"] = round(time.monotonic() - began, 1)
                text = json.dumps(line, default=str)
                print(text, flush=True)
                lines.write(text + "\n")
                lines.flush()
            gc.collect()
            if args.device.startswith("cuda"):
                torch.cuda.empty_cache()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"])
    parser.add_argument("--model", default="llava_1_5_7b")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--compile", action="store_true", help="compile the decode step, or the prefill, before it is captured"
    )
    parser.add_argument("--cache-step", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a request")
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of the long prompt")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--narrow", action="store_true", help="narrow layers: a dry run of this script")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------- model and requests


def spec_of(args: argparse.Namespace) -> ModelSpec:
    fields = yaml.safe_load((CONF / f"{args.model}.yaml").read_text(encoding="utf-8"))
    fields.pop("_target_")
    spec = ModelSpec(**fields)
    if not args.narrow:
        return spec
    config = copy.deepcopy(spec.config)
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config["text_config"].update(**narrow, num_hidden_layers=2, num_key_value_heads=2)
    config["vision_config"].update(**narrow, num_hidden_layers=10)
    if config["model_type"] == "qwen2_5_vl":
        config["text_config"]["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 3, 3]}
        config["vision_config"].update(num_heads=4, depth=2, out_hidden_size=64, fullatt_block_indexes=[1])
    return replace(spec, config=config)


def loaded(args: argparse.Namespace, *, dtype: str | None = None) -> TransformersModel:
    runtime = Runtime(device=args.device, dtype=dtype or args.dtype, attn_implementation="sdpa")
    return load(spec_of(args), runtime)


def with_loop(model: TransformersModel, args: argparse.Namespace, **changes: Any) -> TransformersModel:
    settings = GraphSettings(**{"cache_step": args.cache_step, "decode_compile": args.compile, **changes})
    loop = GraphLoop(module=model.module, anatomy=model.anatomy, device=model.device, settings=settings)
    return replace(model, loop=loop)


def request(
    tokens: int,
    *,
    prompt: int | None = None,
    seed: int = 0,
    question: str = "What is this?",
    size: tuple[int, int] = (640, 480),
) -> Request:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    data = out.getvalue()
    image = ImageSource(name=f"random/{seed}", read=lambda: data, size=size)
    sample = Sample(sample_id=str(seed), question=question, images=(image,))
    return Request(sample=sample, output=Output(max_new_tokens=tokens, forced=True), prompt_tokens=prompt, seed=seed)


def prepared(model: TransformersModel, asked: Request) -> PreparedRun:
    return prepare(model, model.resolve(asked))


def long_request(model: TransformersModel, args: argparse.Namespace, tokens: int) -> PreparedRun:
    """A request whose input is ``--prompt`` tokens, image and text together."""
    few = prepared(model, request(tokens, prompt=8)).prepared.counts.num_input_tokens
    return prepared(model, request(tokens, prompt=args.prompt - few + 8))


def times(model: TransformersModel, run: PreparedRun, runs: int, *, watched: bool = True) -> list[dict[str, Any]]:
    """``runs`` runs of one request after three that are not kept."""
    probes = [TimelineProbe()] if watched else []
    with collector_at_rest() as collected:
        return [complete(model, run, probes, collected).values for _ in range(runs + 3)][3:]


def middle(values: Sequence[float]) -> dict[str, float]:
    ranked = sorted(values)
    low, high = (ranked[min(int(share * len(ranked)), len(ranked) - 1)] for share in (0.05, 0.95))
    return {"median": round(statistics.median(ranked), 4), "p5": round(low, 4), "p95": round(high, 4)}


def who(model: TransformersModel) -> dict[str, Any]:
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "dtype": str(model.dtype), "engine": dict(model.loop.facts)}


# -------------------------------------------------------------------------------------------------------------- floors


def rates(device: str, dtype: str) -> dict[str, float]:
    """Bytes and FLOPs a second that this device reaches now."""
    found = measure_peaks(device, dtype)
    side = 16384 if device.startswith("cuda") else 512
    kind = getattr(torch, dtype)
    matrix = torch.randn(side, side, device=device, dtype=torch.float32).to(kind)
    vector = torch.randn(side, device=device, dtype=torch.float32).to(kind)
    out = torch.empty(side, device=device, dtype=kind)
    reads_s = repeated_s(lambda: torch.mv(matrix, vector, out=out), device)
    return {
        "copy_bytes_per_s": found.bytes_per_s,
        "matvec_bytes_per_s": matrix.numel() * kind.itemsize / reads_s,
        "matmul_flops_per_s": found.flops_per_s,
    }


def repeated_s(work: Callable[[], Any], device: str, repeats: int = 50) -> float:
    for _ in range(3):
        work()
    wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - begin) / repeats


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def step_bytes(model: TransformersModel, tokens_in_cache: int) -> int:
    """The fewest bytes that a decode step reads: decoder and head once, keys and values of the cache once."""
    item = model.dtype.itemsize
    table = model.module.get_input_embeddings().weight
    weights = {id(p): p.numel() for path in decoder_paths(model) for p in model.module.get_submodule(path).parameters()}
    weights.pop(id(table), None)
    weights[id(head(model))] = head(model).numel()
    return (sum(weights.values()) + kv_elements(model) * tokens_in_cache) * item


def decoder_paths(model: TransformersModel) -> Sequence[str]:
    return model.anatomy.language_model


def head(model: TransformersModel) -> torch.Tensor:
    return model.module.get_output_embeddings().weight


def kv_elements(model: TransformersModel) -> int:
    text = model.module.config.get_text_config(decoder=True)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * size


def prefill_flops(model: TransformersModel, tokens: int) -> float:
    """Products with the decoder's weights for every token, causal attention counted half, the head for one token."""
    text = model.module.config.get_text_config(decoder=True)
    linear = sum(
        module.weight.numel()
        for path in decoder_paths(model)
        for module in model.module.get_submodule(path).modules()
        if isinstance(module, torch.nn.Linear)
    )
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2 * 2 * tokens * tokens * text.num_attention_heads * size * text.num_hidden_layers / 2
    return 2 * linear * tokens + attention + 2 * head(model).numel()


# --------------------------------------------------------------------------------------------------------------- parts


def machine(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    dtype = "bfloat16" if args.device.startswith("cuda") else "float32"
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    yield {"device": name, "dtype": dtype, **rates(args.device, dtype)}


def tokens(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    dtypes = ("bfloat16", "float32") if args.device.startswith("cuda") else ("float32",)
    for dtype in dtypes:
        eager = loaded(args, dtype=dtype)
        ours = with_loop(eager, args)
        questions = ("What is this?", "Where was this picture taken, and when?", "How many are there?")
        for seed, question in enumerate(questions):
            run = prepared(eager, request(args.tokens, seed=seed, question=question))
            moved = eager.transfer(run.prepared)
            want, got = eager.generate(moved), ours.generate(moved)
            again = ours.generate(moved)
            found = {"dtype": dtype, "equal": torch.equal(want, got), "repeatable": torch.equal(got, again)}
            found["tokens"] = want.shape[1]
            found["distinct"] = len({*want.flatten().tolist()})
            if not found["equal"]:
                found |= parting(eager, moved, want, got)
            yield found | {"input_tokens": run.prepared.counts.num_input_tokens}
        yield {"dtype": dtype, **who(ours)}
        del eager, ours
        gc.collect()


def parting(eager: TransformersModel, moved: Any, want: torch.Tensor, got: torch.Tensor) -> dict[str, Any]:
    """Where two answers part, and how far apart the eager logits of the two tokens are there."""
    at = int((want != got).any(0).nonzero()[0])
    out = eager.module.generate(
        **moved.inputs,
        max_new_tokens=want.shape[1],
        min_new_tokens=want.shape[1],
        output_logits=True,
        return_dict_in_generate=True,
        disable_compile=True,
    )
    logits = out.logits[at][0].float()
    gap = float(logits[want[0, at]] - logits[got[0, at]])
    spacing = float(logits[want[0, at]].abs()) * torch.finfo(eager.dtype).eps
    return {"part_at": at, "logit_gap": gap, "gap_in_roundings": round(gap / spacing, 2) if spacing else None}


def decode(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = with_loop(loaded(args), args)
    run = prepared(model, request(args.tokens))
    rows = times(model, run, args.runs)
    length = run.prepared.counts.num_input_tokens
    dtype = str(model.dtype).removeprefix("torch.")
    copied = rates(args.device, dtype)["copy_bytes_per_s"]
    floor = step_bytes(model, length + args.tokens // 2) / copied * 1e3
    steps = [row["T_LLM_decode"] / (args.tokens - 1) for row in rows]
    yield {
        "ms_per_token": middle(steps),
        "floor_ms": round(floor, 4),
        "over_floor": round(statistics.median(steps) / floor, 4),
        "goal": 1.4,
        "loop_ms_per_token": middle([row["T_decode_loop"] / (args.tokens - 1) for row in rows]),
        "copy_bytes_per_s": copied,
        "step_bytes": step_bytes(model, length + args.tokens // 2),
        "input_tokens": length,
        **who(model),
    }


def encoder(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    eager = loaded(args)
    model = with_loop(eager, args, decode_compile=False)
    for size in ((640, 480), (480, 640)):
        run = prepared(model, request(4, size=size))
        captured_ms = model.ready(run.prepared).get("T_capture")
        rows, bare = times(model, run, args.runs), times(eager, run, 5)
        differs = [tower_difference(model, prepared(model, request(4, size=size, seed=seed))) for seed in (1, 2)]
        found: dict[str, Any] = {"size": size, "T_capture": captured_ms, "missed": model.loop.missed}
        for name in ("T_vision_encoder", "T_projector", "T_LLM_prefill", "TTFT_model", "T_total"):
            if name in rows[0]:
                found[name] = middle([row[name] for row in rows])
                found[f"eager_{name}"] = middle([row[name] for row in bare])
        stages = model.loop.facts["stages"]
        whole = [stage["graphs"] or not stage["eager"] for stage in stages.values()]
        yield found | {
            "T_capture_of_runs": [row["T_capture"] for row in rows if "T_capture" in row],
            "off_by_share_of_norm": differs,
            "stages": stages,
            "captured": stages["vision_encoder"]["graphs"] > 0 and all(whole) and not model.loop.missed,
        }
    yield who(model)


def tower_difference(model: TransformersModel, run: PreparedRun) -> float:
    """How far what the towers give in replays is from what their code gives: the largest, in shares of the norm."""
    given: list[list[torch.Tensor]] = [[], []]
    moved = model.transfer(run.prepared)
    model.ready(run.prepared)
    for outputs, answerer in zip(given, (model, replace(model, loop=None)), strict=True):
        handles = [
            model.module.get_submodule(path).register_forward_hook(
                lambda _module, _inputs, out, outputs=outputs: outputs.extend(tensors_of(out))
            )
            for name, paths in model.anatomy.stages()
            if name in {"vision_encoder", "projector"}
            for path in paths
        ]
        answerer.generate(moved)
        for handle in handles:
            handle.remove()
    pairs = list(zip(*given, strict=True))
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


def tensors_of(out: Any) -> list[torch.Tensor]:
    return [leaf.double() for leaf in tree_flatten(out)[0] if isinstance(leaf, torch.Tensor)]


def prefill(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    eager = loaded(args)
    run = long_request(eager, args, 4)
    dtype = str(eager.dtype).removeprefix("torch.")
    measured = rates(args.device, dtype)["matmul_flops_per_s"]
    for compile_it in (False, True) if args.compile else (False,):
        model = with_loop(eager, args, decode_compile=False, prefill_compile=compile_it)
        yield {"prefill_compile": compile_it} | prefill_of(model, run, args, measured)
        model.loop.clear()


def prefill_of(model: TransformersModel, run: PreparedRun, args: argparse.Namespace, measured: float) -> dict[str, Any]:
    bare = replace(model, loop=None)
    rows = times(model, run, args.runs)
    length = run.prepared.counts.num_input_tokens
    flops = prefill_flops(model, length)
    dtype = str(model.dtype).removeprefix("torch.")
    took = statistics.median(row["T_LLM_prefill"] for row in rows)
    moved = model.transfer(run.prepared)
    want, got = bare.generate(moved), model.generate(moved)
    found: dict[str, Any] = {
        "input_tokens": length,
        "T_LLM_prefill": middle([row["T_LLM_prefill"] for row in rows]),
        "T_vision_encoder": middle([row["T_vision_encoder"] for row in rows]),
        "flops": flops,
        "floor_ms_measured": round(flops / measured * 1e3, 4),
        "over_floor_measured": round(took / (flops / measured * 1e3), 4),
        "matmul_flops_per_s": measured,
        "goal": 1.5,
    }
    if model.device.type == "cuda" and (table := table_peaks(torch.cuda.get_device_name(), dtype).peaks) is not None:
        found["floor_ms_datasheet"] = round(flops / table.flops_per_s * 1e3, 4)
        found["over_floor_datasheet"] = round(took / (flops / table.flops_per_s * 1e3), 4)
    found["equal"] = torch.equal(want, got)
    if not found["equal"]:
        found |= parting(bare, moved, want, got)
    eager_ms = statistics.median(row["T_LLM_prefill"] for row in times(bare, run, 5))
    return found | {"eager_T_LLM_prefill": round(eager_ms, 4), **who(model)}


def request_part(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = with_loop(loaded(args), args)
    bare = replace(model, loop=None)
    run = prepared(model, request(args.tokens))
    rows: Mapping[str, list[dict[str, Any]]] = {"cudagraph": [], "eager": []}
    for _ in range(max(args.runs // 10, 1)):  # in turn, so that a slow spell of the host meets both
        rows["cudagraph"].extend(times(model, run, 10))
        rows["eager"].extend(times(bare, run, 5))
    for runtime, found in rows.items():
        yield {
            "runtime": runtime,
            **{name: middle([row[name] for row in found]) for name in STAGES if name in found[0]},
            "TTFT_model": middle([row["TTFT_model"] for row in found]),
            "residual_share": middle([row["T_residual"] / row["T_total"] for row in found]),
            "first_step_over_later": middle([row["ITL"][0] / statistics.median(row["ITL"][1:]) for row in found]),
            "p95_over_median": round(
                middle([r["T_total"] for r in found])["p95"] / statistics.median(r["T_total"] for r in found), 4
            ),
            "flags": sorted({flag for row in found for flag in row.get("flags", [])}),
            "runs": len(found),
        }
    yield who(model) | {"missed": model.loop.missed}


def overhead(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = with_loop(loaded(args), args)
    run = prepared(model, request(args.tokens))
    times(model, run, 1)
    ratios = []
    with collector_at_rest() as collected:
        for number in range(4 * args.runs):
            order = (True, False) if number % 2 else (False, True)
            pair = {w: complete(model, run, [TimelineProbe()] if w else [], collected).values for w in order}
            ratios.append(pair[True]["T_total"] / pair[False]["T_total"])
    blocks = [statistics.median(ratios[i::8]) for i in range(8)]
    half = 2.365 * statistics.stdev(blocks) / math.sqrt(8)
    ratio = statistics.median(ratios)
    yield {
        "ratio": round(ratio, 5),
        "low": round(ratio - half, 5),
        "high": round(ratio + half, 5),
        "pairs": len(ratios),
        "goal": "≤ 1.01",
    }


def attention(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    heads, groups, size, of = 28, 4, 128, torch.nn.functional.scaled_dot_product_attention
    repeats = heads // groups
    for length in (512, 768, 1024, 2048):
        dtype = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
        query, key, value = (
            torch.randn(1, count, slots, size, device=args.device, dtype=dtype)
            for count, slots in ((heads, 1), (groups, length), (groups, length))
        )
        mask = torch.zeros(1, 1, 1, length, device=args.device, dtype=dtype)
        mask[..., length - 100 :] = torch.finfo(dtype).min
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "as_they_are": partial(of, query, key, value, attn_mask=mask, enable_gqa=True),
            "side_by_side": partial(of, query.reshape(1, groups, repeats, size), key, value, attn_mask=mask),
            "repeated": lambda query=query, key=key, value=value, mask=mask: of(
                query,
                key.repeat_interleave(repeats, dim=1),
                value.repeat_interleave(repeats, dim=1),
                attn_mask=mask,
            ),
        }
        exact = of(query.float(), key.float(), value.float(), attn_mask=mask.float(), enable_gqa=True).flatten()
        for way, work in ways.items():
            with attention_kernels() as kernels:
                off = float((work().float().flatten() - exact).norm() / exact.norm())
            play = (
                captured(partial(repeated, work, 50)) if args.device.startswith("cuda") else partial(repeated, work, 50)
            )
            us = sorted(repeated_s(play, args.device, 1) / 50 * 1e6 for _ in range(args.runs))
            yield {"tokens": length, "way": way, "us": middle(us), "off": off, "operators": sorted(kernels)}


def repeated(work: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        work()


def captured(work: Callable[[], None]) -> Callable[[], None]:
    recorder = CudaGraphs(torch.device("cuda"))
    recorder.obstacle(work)
    return recorder.record(work)


_OTHER = """
import sys
import torch

for line in sys.stdin:
    torch.zeros(64, 64, device=sys.argv[1]).sum().item()
    print("done", flush=True)
"""


def levels(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    bare = loaded(args)
    model = with_loop(bare, args)
    known, lengths = prepared(model, request(args.tokens)), iter(range(40, 4000, 11))
    on_gpu, held = args.device.startswith("cuda"), []

    def new_length() -> PreparedRun:
        return prepared(model, request(args.tokens, prompt=next(lengths)))

    def step_ms() -> dict[str, float]:
        return middle([row["T_LLM_decode"] / (args.tokens - 1) for row in times(model, known, max(args.runs // 3, 1))])

    def eager(aside: bool) -> None:
        moved = bare.transfer(new_length().prepared)
        with torch.cuda.stream(torch.cuda.Stream()) if on_gpu and aside else nullcontext():
            bare.generate(moved)
        wait(args.device)

    def other(process: list[subprocess.Popen[str]]) -> None:
        if not process:
            command = [sys.executable, "-c", _OTHER, args.device]
            process.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert process[0].stdin is not None
        assert process[0].stdout is not None
        process[0].stdin.write("\n")
        process[0].stdin.flush()
        process[0].stdout.readline()

    def trivial() -> None:
        if on_gpu:
            held.append(captured(lambda: torch.zeros(8, device=args.device)))

    beside: list[subprocess.Popen[str]] = []
    up = {
        "graphs for a new length": lambda: times(model, new_length(), 1),
        "an eager answer to a new length": partial(eager, aside=False),
        "an eager answer to a new length on another stream": partial(eager, aside=True),
        "a trivial graph": trivial,
        "1 GiB allocated": lambda: held.append(torch.empty(1 << 30, dtype=torch.uint8, device=args.device)),
    }
    down = {
        **{f"a pause of {seconds:g} s": partial(time.sleep, seconds) for seconds in (0.2, 0.7, 1.5, 3.0)},
        "memory given back": torch.cuda.empty_cache if on_gpu else gc.collect,
        "another process begins and runs a kernel": partial(other, beside),
        "another process runs a kernel": partial(other, beside),
    }
    try:
        yield {"after": "the first captures", "ms_per_token": step_ms(), **who(model)}
        for name, work in down.items():
            up["graphs for a new length"]()
            before = step_ms()
            work()
            yield {"after": name, "before": before, "ms_per_token": step_ms()}
        for name, work in up.items():
            other(beside)  # whatever brings it back
            time.sleep(3.0)
            before = step_ms()
            work()
            yield {"after": name, "before": before, "ms_per_token": step_ms()}
    finally:
        for process in beside:
            process.kill()


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "machine": machine,
    "tokens": tokens,
    "decode": decode,
    "encoder": encoder,
    "prefill": prefill,
    "attention": attention,
    "request": request_part,
    "overhead": overhead,
    "levels": levels,
}

if __name__ == "__main__":
    sys.exit(main())
