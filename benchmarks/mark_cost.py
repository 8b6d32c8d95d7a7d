"""What the instrument itself costs: marks, hooks, wrapped calls of vLLM, the stopping criterion, attaching, a row; µs.

    python benchmarks/mark_cost.py                # CUDA events too, where there is a GPU
    python benchmarks/mark_cost.py --tensors 1200 # of a model with more parameter tensors than LLaVA-1.5-7B

Each line is the median over repeats of the mean over many calls: processor time of the calling thread, wall time, the
fastest repeat's wall time, and the ratio (of processor times) to the plainest way to do the same. Lines are taken in
turn, so that a slow moment hits all of them. On CUDA the figures are those of the host: what a call costs the thread
that launches kernels.

Last, what the thread costs that notices frozen control groups: its two looks a second as a share of that second, and
the ratio of the same work with and without it, in pairs of about a second each, with the interval of their median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vlmbench.analysis.quantiles import median

Act = Callable[[], object]
NEW_TOKENS = 32
_NOW = "time.perf_counter_ns()"
_LOOK = "one look of the thread that beats"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing timed: ``act`` is called ``calls`` times a repeat; ``reset`` before each repeat is not timed."""

    name: str
    act: Act
    calls: int = 2000
    plain: str | None = None
    reset: Act = lambda: None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """µs a call: on the wall clock, and of this thread's processor time (which others' work does not touch)."""

    wall: float
    cpu: float


def timed(lines: list[Line], repeats: int) -> dict[str, list[Cost]]:
    """Line name to the cost of a call in each repeat, the lines in turn; the first turn is a warm-up."""
    found: dict[str, list[Cost]] = {line.name: [] for line in lines}
    for turn in range(repeats + 1):
        for line in lines:
            cost = timed_once(line)
            if turn:
                found[line.name].append(cost)
    return found


def timed_once(line: Line) -> Cost:
    """The mean cost of a call over one repeat."""
    line.reset()
    act, loop = line.act, range(line.calls)
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    for _ in loop:
        act()
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return Cost(wall=wall / line.calls / 1e3, cpu=cpu / line.calls / 1e3)


def host_lines() -> list[Line]:
    from vlmbench.machine.clock import HostClock

    clock = HostClock()
    return [
        Line(name=_NOW, act=time.perf_counter_ns),
        Line(name="mark on the host's clock", act=clock.marker(""), plain=_NOW, reset=clock.begin),
    ]


class FreeEvent:
    """An event whose recording costs nothing: what is left of a mark is Python's."""

    def record(self) -> None: ...


def free_event_line() -> Line:
    import torch

    from vlmbench.machine.clock import EventClock

    clock = EventClock([torch.device("mps")])  # the kind whose stream is not asked for
    clock._main._event = FreeEvent  # type: ignore[method-assign]
    mark = clock.marker("")

    def begin() -> None:
        clock._marks.clear()
        clock._main.coming = iter(clock._main.events)

    return Line(name="mark by an event that does nothing", act=mark, calls=200, plain=_NOW, reset=begin)


class Engine:
    """The calls of vLLM's engine in the order of a decode step; they do nothing."""

    def __init__(self) -> None:
        request = SimpleNamespace(num_prompt_tokens=1, num_computed_tokens=2)
        scheduled = SimpleNamespace(num_scheduled_tokens={"one": 1}, total_num_scheduled_tokens=1)
        scheduler = SimpleNamespace(
            schedule=lambda: scheduled, update_from_output=lambda: None, requests={"one": request}
        )
        model = SimpleNamespace(embed_multimodal=lambda: None)
        runner = SimpleNamespace(get_model=lambda: model)
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
        self.model_executor = SimpleNamespace(
            driver_worker=SimpleNamespace(model_runner=runner),
            execute_model=lambda _: None,
            sample_tokens=lambda: None,
        )
        self.output_processor = SimpleNamespace(process_outputs=lambda: None)

    def step(self) -> None:
        scheduler = self.engine_core.engine_core.scheduler
        self.model_executor.execute_model(scheduler.schedule())
        self.model_executor.sample_tokens()
        scheduler.update_from_output()
        self.output_processor.process_outputs()


def engine_lines(stack: ExitStack) -> list[Line]:
    """A decode step of an engine that does nothing, with and without the marks of ``runtime=vllm``."""
    from vlmbench.engines.vllm.marks import Boundaries, Steps
    from vlmbench.machine.clock import HostClock

    clock, steps, bare, watched = HostClock(), Steps(), Engine(), Engine()
    token = clock.marker("token")
    steps.criteria = [lambda *_: token()]
    boundaries = Boundaries(engine=watched, projectors=())
    stack.enter_context(boundaries.marked(lambda stage, begins: clock.marker((stage, begins)), steps))

    def reset() -> None:
        clock.begin()
        steps.tokens.clear()
        steps.told = 0

    name = "vLLM's calls of a step, doing nothing"
    return [
        Line(name=name, act=bare.step),
        Line(name="the same, watched (3 marks)", act=watched.step, plain=name, reset=reset),
    ]


def event_lines(device: str) -> list[Line]:
    """CUDA events: recording (the stream asked for each time, or kept), creating, reading, a whole mark."""
    import torch

    from vlmbench.machine.clock import EventClock

    where = torch.device(device)
    make: Any = torch.cuda.Event
    first, event = make(enable_timing=True), make(enable_timing=True)
    stream = torch.cuda.current_stream(where)
    first.record(stream)
    event.record(stream)
    torch.cuda.synchronize(where)
    clock = EventClock([where])

    def begin() -> None:
        torch.cuda.synchronize(where)
        clock.begin()

    def idle() -> None:
        torch.cuda.synchronize(where)

    kept = "event.record(kept stream)"
    return [
        Line(name=kept, act=lambda: event.record(stream), calls=500, reset=idle),
        Line(name="event.record()", act=event.record, calls=500, plain=kept, reset=idle),
        Line(
            name="event.record(current_stream())",
            act=lambda: event.record(torch.cuda.current_stream(where)),
            calls=500,
            plain=kept,
            reset=idle,
        ),
        Line(name="torch.cuda.current_stream()", act=lambda: torch.cuda.current_stream(where), plain=kept, reset=idle),
        Line(name="creating an event", act=lambda: make(enable_timing=True), plain=kept, reset=idle),
        Line(name="mark by an event", act=clock.marker(""), calls=500, plain=kept, reset=begin),
        Line(name="elapsed_time()", act=_elapsed(first, event, idle), calls=500, plain=kept, reset=idle),
        Line(name="synchronize(), idle device", act=idle, plain=kept),
    ]


def _elapsed(first: Any, last: Any, idle: Act) -> Act:
    last.record()
    idle()
    return lambda: first.elapsed_time(last)


def hook_lines() -> list[Line]:
    """A module called plainly, with a pair of hooks that do nothing, and with the timeline's kind of pair."""
    import torch

    from vlmbench.machine.clock import HostClock

    clock, x = HostClock(), torch.zeros(1)
    plain, empty, marked = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()
    empty.register_forward_pre_hook(lambda *_: None)
    empty.register_forward_hook(lambda *_: None, prepend=True)
    marked.register_forward_pre_hook(clock.marker(0))
    marked.register_forward_hook(clock.marker(1), prepend=True)
    name = "module call"
    return [
        Line(name=name, act=lambda: plain(x)),
        Line(name="module call, empty hook pair", act=lambda: empty(x), plain=name),
        Line(name="module call, hook pair with marks", act=lambda: marked(x), plain=name, reset=clock.begin),
    ]


def criterion_lines(device: str) -> list[Line]:
    """What one more stopping criterion adds to each token, within transformers' own list of criteria."""
    import torch
    from transformers import MaxLengthCriteria, StoppingCriteriaList

    ids = torch.zeros(1, 600, dtype=torch.long, device=device)
    done, mine = torch.zeros(1, dtype=torch.bool, device=device), torch.zeros(1, dtype=torch.bool, device=device)
    length = MaxLengthCriteria(max_length=10_000)
    alone, both = StoppingCriteriaList([length]), StoppingCriteriaList([length, lambda *_, **__: mine])
    scores: Any = None

    def idle() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    name = "criteria list, length only"
    return [
        Line(name="is_done | mine", act=lambda: done | mine, calls=500, reset=idle),
        Line(name=name, act=lambda: alone(ids, scores), calls=500, reset=idle),
        Line(name="criteria list, one more", act=lambda: both(ids, scores), calls=500, plain=name, reset=idle),
    ]


def probe_lines(tensors: int, device: str) -> list[Line]:
    """The whole probe: attaching and detaching, and one request with and without it."""
    from light_model import LightModel, LightSamples

    from vlmbench.probes.timeline import TimelineProbe
    from vlmbench.request import Output, Request
    from vlmbench.runner.execution import complete, prepare

    model, probe = LightModel(parameters=tensors, device=device), TimelineProbe()
    output = Output(max_new_tokens=NEW_TOKENS, forced=True)
    run = prepare(model, Request(sample=LightSamples(1)[0], output=output))

    def attach() -> None:
        with probe.watch(model):
            pass

    name = f"empty model, {NEW_TOKENS} tokens, bare"
    return [
        Line(name=f"attach and detach, {tensors} tensors", act=attach, calls=20),
        Line(name=name, act=lambda: complete(model, run, [], []), calls=50),
        Line(
            name=f"empty model, {NEW_TOKENS} tokens, timeline",
            act=lambda: complete(model, run, [probe], []),
            calls=50,
            plain=name,
        ),
    ]


def beat_lines() -> list[Line]:
    """One look of the thread that notices frozen control groups."""
    from vlmbench.machine.suspension import Suspensions

    suspensions, beats = Suspensions(), Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    suspensions._beats = beats
    return [Line(name=_LOOK, act=lambda: suspensions._look(beat=True), calls=500)] if beats.is_file() else []


def beat_ratios(pairs: int) -> list[Cost]:
    """Ratios of the cost of requests of an empty model, with the thread to without it; which is first takes turns."""
    from light_model import LightModel, LightSamples

    from vlmbench.machine.suspension import Suspensions
    from vlmbench.request import Output, Request
    from vlmbench.runner.execution import complete, prepare

    model = LightModel(parameters=686, device="cpu")
    run = prepare(model, Request(sample=LightSamples(1)[0], output=Output(max_new_tokens=NEW_TOKENS, forced=True)))
    line = Line(name="requests", act=lambda: complete(model, run, [], []), calls=200)
    once = timed([line], 3)["requests"][-1].wall
    line = Line(name="requests", act=line.act, calls=max(1, round(1e6 / once)))
    ratios = []
    for pair in range(pairs):
        took: dict[bool, Cost] = {}
        for beats in (True, False) if pair % 2 else (False, True):
            with Suspensions() if beats else nullcontext():
                took[beats] = timed_once(line)
        ratios.append(Cost(wall=took[True].wall / took[False].wall, cpu=took[True].cpu / took[False].cpu))
    return ratios


def store_lines(directory: Path, stack: ExitStack) -> list[Line]:
    """One row: encoding it, writing it to memory, appending it to the store."""
    from vlmbench.records.store import RecordStore
    from vlmbench.schema import Mode, Record, Status

    numbers = count()
    values: dict[str, Any] = {f"T_metric_{i}": 1.2345678901 * (i + 1) for i in range(20)}
    values |= {"ITL": [4.123456 + i for i in range(NEW_TOKENS - 1)], "num_output_tokens": NEW_TOKENS}

    def record() -> Record:
        return Record(
            point_id="dataset",
            sample_id=str(next(numbers)),
            repeat=0,
            mode=Mode.INSTRUMENTED,
            status=Status.OK,
            values=values,
        )

    store = stack.enter_context(RecordStore(directory / "store"))
    plain = stack.enter_context((directory / "plain.jsonl").open("w"))

    def write_plainly() -> None:
        plain.write(json.dumps(record().to_row()) + "\n")
        plain.flush()

    name = "row: json.dumps, write, flush"
    return [
        Line(name="row: json.dumps alone", act=lambda: json.dumps(record().to_row()), calls=200, plain=name),
        Line(name=name, act=write_plainly, calls=200),
        Line(name="row: RecordStore.append", act=lambda: store.append(record()), calls=200, plain=name),
    ]


def span(estimate: Any) -> str:
    """The interval of an estimate, or why there is none."""
    return estimate.note if estimate.low is None else f"{estimate.low:.4f} to {estimate.high:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="of each line (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=60, help="with and without the thread (default: %(default)s)")
    parser.add_argument("--tensors", type=int, default=686, help="parameter tensors (default: LLaVA-1.5-7B's 686)")
    options = parser.parse_args()
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    print(f"torch {torch.__version__}, {name}")
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        lines = [
            *host_lines(),
            free_event_line(),
            *engine_lines(stack),
            *hook_lines(),
            *criterion_lines(device),
            *probe_lines(options.tensors, device),
        ]
        lines += store_lines(Path(temporary), stack) + beat_lines()
        if device == "cuda":
            lines += event_lines("cuda:0")
        found = timed(lines, options.repeats)
    print(f"{'us a call':40}{'CPU':>10}{'wall':>10}{'fastest':>10}{'ratio':>8}  to")
    for line in lines:
        cpu = statistics.median(cost.cpu for cost in found[line.name])
        walls = [cost.wall for cost in found[line.name]]
        print(f"{line.name:40}{cpu:>10.3f}{statistics.median(walls):>10.3f}{min(walls):>10.3f}", end="")
        plain = line.plain and statistics.median(cost.cpu for cost in found[line.plain])
        print(f"{cpu / plain:>8.2f}  {line.plain}" if plain else "")
    if _LOOK in found:
        share = 2 * statistics.median(cost.cpu for cost in found[_LOOK]) / 1e6
        print(f"the thread that notices freezes: two looks a second are {share:.4%} of it")
    ratios = beat_ratios(options.pairs)
    for name, values in (("wall", [r.wall for r in ratios]), ("processor", [r.cpu for r in ratios])):
        middle = median(values)
        print(f"the same work with and without it, {name} time: {middle.value:.4f} ({span(middle)}), n {len(ratios)}")


if __name__ == "__main__":
    main()
