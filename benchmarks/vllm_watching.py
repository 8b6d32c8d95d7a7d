"""What watching a request costs in ``runtime=vllm``: processor time of the thread that drives the engine.

    make test-vllm                                                       # sets up vLLM's CPU build, once
    PYTHONPATH=. .venv-vllm/bin/python benchmarks/vllm_watching.py       # 200 rounds of 8 tokens, as many of 64
    PYTHONPATH=. python benchmarks/vllm_watching.py --model llava_1_5_7b --tokens 8 --rounds 600     # on a GPU
    PYTHONPATH=. python benchmarks/vllm_watching.py --rows docs/results/h200_llava_vllm/phase1/records.jsonl.xz

The first needs no GPU: the default tiny model, random weights, eager, one request again and again. Two ways:

* In rounds: ``thread_cpu_ms`` and ``T_total`` of a request with the timeline, with the clocks' probe (which asks the
  driver of a GPU just before and after the run) and with both, minus those of the same request without any, in an order
  that is drawn. Everything is in it, the engine's own jitter as well, which is most of it.
* Directly: the engine's calls are wrapped once inside the marks and once outside them; what lies between the two is the
  marks' own, caches as cold as the engine leaves them. The readings of the clock are in it; "bare" is those alone.

The last reads the pairs of a run: where in the request the difference lies, by vLLM's own times.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmbench.analysis.quantiles import median
from vlmbench.records.reading import iter_rows

KNOWN = 5  # rounds that are not counted


def loaded(name: str) -> Any:
    """A model with random weights in an engine of this process: eager, float32 on a CPU, as it comes on a GPU."""
    import torch

    from tests.models.test_export import FLOAT, spec_of
    from vlmbench.engines.vllm.model import load_model
    from vlmbench.engines.vllm.start import VllmSettings
    from vlmbench.models.runtime import Runtime

    if torch.cuda.is_available():
        return load_model(spec_of(name), Runtime(device="cuda", dtype="bfloat16"), asdict(VllmSettings()), 0)
    settings = VllmSettings(enforce_eager=True, max_model_len=1024, engine_options={"max_num_seqs": 4})
    return load_model(spec_of(name), FLOAT, asdict(settings), 0)


@dataclass
class Between:
    """Time between wrappers outside and inside the marks of one request, and how many calls were wrapped.

    Attributes:
        ns: outside minus inside.
        calls: of the engine.
    """

    ns: int = 0
    calls: int = 0

    def side(self, sign: int) -> Callable[[Any], Any]:
        def make(call: Any) -> Any:
            def timed(*args: Any, **kwargs: Any) -> Any:
                begin = time.perf_counter_ns()
                result = call(*args, **kwargs)
                self.ns += sign * (time.perf_counter_ns() - begin)
                self.calls += sign > 0
                return result

            return timed

        return make


@dataclass
class Outside:
    """A probe that wraps the engine's calls after the timeline did.

    Attributes:
        between: takes the times.
    """

    between: Between
    name = "outside"
    own_run = False
    max_output_tokens = None

    @contextmanager
    def watch(self, model: Any) -> Iterator[Any]:
        with around(model, self.between.side(1)):
            yield self

    stopping_criteria: tuple[Any, ...] = ()

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def values(self, _: Any) -> dict[str, Any]:
        return {}


@contextmanager
def around(model: Any, make: Callable[[Any], Any]) -> Iterator[None]:
    """Wrap every call that the marks wrap."""
    from vlmbench.engines.vllm.marks import wrapped
    from vlmbench.engines.vllm.start import runner_of

    engine, inner = model.engine, runner_of(model.engine).get_model()
    calls = [(inner, "embed_multimodal"), (engine.model_executor, "execute_model")]
    calls += [(engine.model_executor, "sample_tokens"), (engine.output_processor, "process_outputs")]
    calls += [(engine.engine_core.engine_core.scheduler, name) for name in ("schedule", "update_from_output")]
    calls += [(inner.get_submodule(path), "forward") for path in model.boundaries.projectors]
    with ExitStack() as stack:
        for owner, name in calls:
            stack.enter_context(wrapped(owner, name, make))
        yield


def direct(model: Any, tokens: int, number: int) -> tuple[list[float], list[float], int]:
    """µs of the marks of each request; of the same two wrappers without marks between them; calls of a request."""
    from tests.models.test_export import request_of
    from vlmbench.probes.timeline import TimelineProbe
    from vlmbench.runner.execution import collector_at_rest, complete, in_memory, prepare

    found: dict[bool, list[float]] = {True: [], False: []}
    with collector_at_rest() as collected:
        run = prepare(model, in_memory(request_of(tokens)))
        for _ in range(number + KNOWN):
            for watched in (True, False):
                between = Between()
                with around(model, between.side(-1)):
                    probes = [TimelineProbe(), Outside(between)] if watched else [Outside(between)]
                    complete(model, run, probes, collected)  # type: ignore[arg-type]
                found[watched].append(between.ns / 1e3)
    return found[True][KNOWN:], found[False][KNOWN:], between.calls


def arms(model: Any) -> dict[str, list[Any]]:
    """The probes of each arm; that of clocks has nothing to ask without a GPU."""
    from vlmbench.probes.clocks import ClocksProbe
    from vlmbench.probes.timeline import TimelineProbe

    found: dict[str, list[Any]] = {"bare": [], "timeline": [TimelineProbe()]}
    if model.device.type == "cuda":
        found |= {"clocks": [ClocksProbe()], "timeline and clocks": [TimelineProbe(), ClocksProbe()]}
    return found


def rounds(model: Any, tokens: int, number: int) -> list[dict[str, dict[str, Any]]]:
    """Values of a request in each arm, one right after the other."""
    from tests.models.test_export import request_of
    from vlmbench.runner.execution import collector_at_rest, complete, in_memory, prepare

    order, found, chosen = random.Random(0), [], arms(model)
    with collector_at_rest() as collected:
        run = prepare(model, in_memory(request_of(tokens)))
        for _ in range(number + KNOWN):
            names = order.sample(list(chosen), len(chosen))
            found.append({name: complete(model, run, chosen[name], collected).values for name in names})
    return found[KNOWN:]


def in_rows(file: Path) -> dict[str, list[float]]:
    """Differences of the pairs of a run, µs, by what differs."""
    sides: dict[str, dict[Any, Any]] = {"bare": {}, "instrumented": {}}
    for row in iter_rows(file, itl=False):
        if row["status"] == "ok" and row["mode"] in sides:
            sides[row["mode"]][tuple(row[name] for name in ("point_id", "sample_id", "repeat", "session"))] = row
    halves = [(sides["instrumented"][key], bare) for key, bare in sides["bare"].items() if key in sides["instrumented"]]
    names = ("T_total", "thread_cpu_ms", "engine_prefill_time", "engine_decode_time")
    rise = {name: [1e3 * (watched[name] - bare[name]) for watched, bare in halves] for name in names}
    beside = [cpu - prefill for cpu, prefill in zip(rise["thread_cpu_ms"], rise["engine_prefill_time"], strict=True)]

    def left(row: Any) -> float:
        return float(row["T_total"] - row["engine_inference_time"])

    outside = [1e3 * (left(watched) - left(bare)) for watched, bare in halves]
    return rise | {
        "thread_cpu_ms without engine_prefill_time": beside,
        "T_total without engine_inference_time": outside,
    }


def show(name: str, values: list[float]) -> None:
    """A line: the median with its interval."""
    found = median(values)
    ends = found.note if found.low is None else f"{found.low:+.1f} to {found.high:+.1f}"
    print(f"{name}: {found.value:+.1f} us ({ends}), n {found.n}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="with random weights (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="of each length (default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 64], help="output tokens (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", default=["directly", "rounds"], choices=["directly", "rounds"])
    parser.add_argument("--rows", type=Path, help="read this file of rows instead, and run nothing")
    options = parser.parse_args()
    if options.rows:
        for name, values in in_rows(options.rows).items():
            show(f"{name}, watched minus bare", values)
        return
    model = loaded(options.model)
    for tokens in options.tokens:
        if "directly" in options.ways:
            marks, empty, calls = direct(model, tokens, options.rounds)
            show(f"{tokens:3} tokens, {calls} calls of the engine: between the wrappers, watched", marks)
            show(f"{tokens:3} tokens, {calls} calls of the engine: between the wrappers, bare", empty)
            rise = [watched - bare for watched, bare in zip(marks, empty, strict=True)]
            show(f"{tokens:3} tokens, {calls} calls of the engine: the marks, watched minus bare", rise)
        if "rounds" in options.ways:
            found = rounds(model, tokens, options.rounds)
            for name in ("thread_cpu_ms", "T_total"):
                print(f"{tokens:3} tokens, {name}, bare: {median([one['bare'][name] for one in found]).value:.2f} ms")
                for arm in [arm for arm in found[0] if arm != "bare"]:
                    rise = [1e3 * (one[arm][name] - one["bare"][name]) for one in found]
                    show(f"{tokens:3} tokens, {name}, {arm} minus bare", rise)
        print(f"load average {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
