"""Kill real runs at random moments, continue them, and count what was lost, doubled or torn.

    python scripts/kills.py DIR --kills 300 [--minutes 60] [--seed 0] [--kinds phase1 phase2 study …]

Kinds are commands (phase1, phase2, study, multirun, search: ``hydra/sweeper=optuna``, budget, export, report,
report_again: ``experiment=report`` on a finished run), engines (cudagraph, uncaptured on a CPU; compiled, by inductor's
C++ compiler, which transformers only uses on a CPU where it is told to; closed and open load against a replay server
that this script starts; vllm, one request after the other and under a closed load) and every intervention. What cannot
run here is named: ``intervention=quantized`` needs torchao or bitsandbytes, compiling g++, vllm the environment that
``make test-vllm`` sets up. Each attempt is a whole command line on the tiny model (compose, load, measure, report) in a
fork of this process, which has imported everything once; so an attempt takes seconds. Three in four kills are
SIGKILL, the others SIGTERM, SIGINT or SIGHUP, which must end with 130 within seconds. Every row that a store
acknowledges goes through a pipe to this process. After each kill all JSON files must be whole; a run that came to its
end must be ``done`` with status 0, hold every row that was ever acknowledged, each once, and the keys of an
uninterrupted run of its kind.

The state is kept in DIR/kills.json: the same command goes on where it was. DIR/attempts.log says of each attempt when
it was killed and how it ended. Prints a table by kind. Exit status 1 if anything was lost, doubled, torn or unexpected.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever vlmbench is installed
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
)

_SMALL = (
    "runtime.device=cpu", "runtime.threads=1", "progress=false", "output.tokens=2", "measurement.warmup.max_runs=2",
    "measurement.stopping.min_samples=3", "measurement.stopping.max_samples=3", "measurement.stopping.min_time_s=0",
    "dataset.num_samples=3", "device_peaks=none", "probe=[timeline]",
)  # fmt: skip
_VISION, _OUTPUT = "sweep.axes.vision_tokens=[16,64,144]", "sweep.axes.output_tokens=[4,8,16]"
_PORT = 18_735  # always the same: the address of a server is part of a run's configuration
_SERVED = (
    "experiment=phase1", *(one for one in _SMALL if "num_samples" not in one), "dataset.num_samples=16", "report=none",
    "measurement.bare_every=0", "runtime=endpoint", "runtime.proxy=none", "runtime.model=counted",
    f"runtime.base_url=http://127.0.0.1:{_PORT}/v1",
)  # fmt: skip
_VLLM = (
    "experiment=phase1", *_SMALL, "report=none", "runtime=vllm", "runtime.enforce_eager=true", "runtime.dtype=float32",
)  # fmt: skip
COMMANDS: dict[str, tuple[str, ...]] = {
    "phase1": ("experiment=phase1", *_SMALL, "measurement.repeats=2", "report=none"),
    "phase2": ("experiment=phase2", *_SMALL, _VISION),
    "study": ("experiment=all", *_SMALL),
    "multirun": ("-m", "experiment=phase1", *_SMALL, "report=none", "seed=0,1,2"),
    "report": ("experiment=phase1", *_SMALL),
    "report_again": ("experiment=report",),
    "cudagraph": ("experiment=phase1", *_SMALL, "runtime=cudagraph", "report=none"),
    "closed": (*_SERVED, "load=closed", "load.concurrency=2"),
    "open": (*_SERVED, "load=open", "load.rate_per_s=20"),
    "vllm": _VLLM,
    "vllm_closed": (
        *(one for one in _VLLM if "num_samples" not in one), "dataset.num_samples=10", "measurement.reference=false",
        "load=closed", "load.concurrency=2",
    ),
    **{
        method: (
            "experiment=interventions", *_SMALL, "measurement.prompt_tokens=8", "report=none", f"intervention={method}",
            *arguments,
        )
        for method, arguments in {
            "keep_after_projector": ("sweep.axes.intervention.keep=[1,0.5]",),
            "keep_in_layer": ("intervention.layer=1",), "fastv": ("intervention.layer=1",),
            "pyramid_drop": ("intervention.layer=[1]",), "visionzip": (), "downsample": (), "early_exit": (),
            "assisted": (), "quantized": (),
        }.items()
    },
    "quantized_bitsandbytes": (
        "experiment=interventions", *_SMALL, "measurement.prompt_tokens=8", "report=none", "intervention=quantized",
        "intervention.kind=bitsandbytes_8bit",
    ),
    "compiled": ("experiment=phase1", *_SMALL, "runtime=compiled", "report=none"),
    "budget": (
        "experiment=budget", *_SMALL, "latency_ms=600000", "percentile=50", "measurement.prompt_tokens=8",
        "measurement.stopping.min_samples=30", "measurement.stopping.max_samples=30", "measurement.image_size=[28,28]",
        "sweep.axes={output_tokens:[2,3]}", "figures.formats=[png]",
    ),
    "export": ("experiment=export", "export_weights=true", "runtime.device=cpu"),
    "search": (
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.seed=1", "experiment=phase1", *(one for one in _SMALL if "output." not in one),
        "output.tokens=choice(2,3,4)", "measurement.costs=false", "figures.formats=[png]", "objective=T_request.p50",
    ),
}  # fmt: skip
_ENDS = {"budget": (0, 2)}  # 2: its few runs are worth too little to tell whether the promise is kept
_CHOSEN_BY_NOISE = {("budget", "check")}  # which settings are measured again depends on what was measured
_NEEDS = {
    "vllm": "vllm",
    "vllm_closed": "vllm",
    "quantized": "torchao",
    "quantized_bitsandbytes": "bitsandbytes",
    "search": "optuna",
}
_SIGNALS = (signal.SIGKILL,) * 9 + (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LONGEST_S = 600.0
_UNHEARD_S = 20.0  # a signal to stop that a process outlives by so much was not heard
# Modules that start threads or processes of their own, or are the fork's own business.
_NOT_BEFORE_A_FORK = ("__main__", "torch._inductor", "torch._dynamo", "triton", "pyarrow", "vllm")
Key = tuple[str, str, str, int, str]  # directory, point, sample, repeat, mode


@dataclass
class Attempt:
    """What came of one attempt.

    Args:
        status: exit status, or minus the signal that ended it.
        acknowledged: rows that the store said it holds.
        seconds: how long it took.
        after_s: how long it went on after its first row (of ``report``: after the report began).
        outlived_s: how long it went on after the signal; 0 where there was none.
    """

    status: int
    acknowledged: set[Key]
    seconds: float
    after_s: float
    outlived_s: float = 0.0


_COUNTED = ("kills", "SIGKILL", "attempts", "finished", "rows", "lost", "doubled", "torn", "skipped")


@dataclass
class State:
    """What is known so far; stored in ``kills.json``."""

    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def total(self, name: str) -> int:
        """One of the counts over all kinds."""
        return sum(counts[name] for counts in self.by_kind.values())

    def table(self) -> str:
        """All of it, a line a kind: how many were killed (by SIGKILL), came to their end, with which rows."""
        lines = [f"{'kind':14}" + "".join(f"{name:>10}" for name in _COUNTED)]
        for kind, counts in self.by_kind.items():
            lines.append(f"{kind:14}" + "".join(f"{counts[name]:>10,}" for name in _COUNTED))
        lines.append(f"{'all':14}" + "".join(f"{self.total(name):>10,}" for name in _COUNTED))
        return "\n".join([*lines, f"problems: {len(self.problems)}"])


def main() -> int:
    """Kill until enough were killed or the time is over; returns the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    absent = {kind: package for kind, package in _NEEDS.items() if importlib.util.find_spec(package) is None}
    absent |= {} if shutil.which("g++") else {"compiled": "g++"}
    for kind in {*options.kinds} & absent.keys():
        options.kinds.remove(kind)
        print(f"not tried: {kind} ({absent[kind]} is not installed)", flush=True)
    root = options.directory.resolve()
    root.mkdir(parents=True, exist_ok=True)
    state, until = _stored(root), time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends, too
    _import_everything()
    with _replay_server() if {"closed", "open"} & {*options.kinds} else contextlib.nullcontext():
        seed = f"{options.seed} {state.total('attempts')}"
        kinds = [Kind(root, name, random.Random(f"{seed} {name}")) for name in options.kinds]
        for kind in kinds:
            kind.prepare()
        turn = 0
        while state.total("kills") < options.kills and time.monotonic() < until and len(state.problems) < 20:
            min(kinds, key=lambda kind: kind.spent_s).step(state)  # equal shares of time: cheap kinds get more kills
            turn += 1
            _store(root, state)
            if turn % 10 == 0:
                print(state.table(), flush=True)
        for kind in kinds:  # what is under way comes to its end
            if time.monotonic() < until + 300:
                kind.finish(state)
                _store(root, state)
    print(state.table())
    for problem in state.problems:
        print(f"  {problem}")
    return int(bool(state.problems or any(state.total(name) for name in ("lost", "doubled", "torn"))))


@contextlib.contextmanager
def _replay_server() -> Iterator[None]:
    command = [sys.executable, "-m", "vlmbench.testing.replay", "--port", str(_PORT), "--dialect", "vllm"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1]) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()  # its address: it serves
            yield
        finally:
            server.terminate()


class Kind:
    """Runs of one kind, one after the other: each is killed until an attempt is faster than its kill.

    Args:
        root: of all kinds.
        name: of this one.
        rng: decides when and how.
    """

    def __init__(self, root: Path, name: str, rng: random.Random) -> None:
        self.folder, self.name, self.rng = root / name, name, rng
        self.expected: set[Key] = set()
        self.seconds = self.after_s = self.spent_s = 0.0

    def prepare(self) -> None:
        """One run without a kill: what is measured, how long it takes, and which modules to import for the next."""
        self.folder.mkdir(exist_ok=True)
        whole = self.folder / "whole"
        took = self.folder / "took.json"
        if not took.exists():
            shutil.rmtree(whole, ignore_errors=True)
            self._begin(whole)
            done = attempt(self.name, whole, None, None)
            if done.status not in _ENDS.get(self.name, (0,)):
                raise SystemExit(f"an uninterrupted run of {self.name} ended with {done.status}; see {whole}.log")
            took.write_text(json.dumps([done.seconds, done.after_s]))
        self.expected = {
            key
            for key in _stored_keys(whole)
            if (self.name, key[0]) not in _CHOSEN_BY_NOISE
            and key[1] != "reference"  # another request where a process died in the first
        }
        self.seconds, self.after_s = map(float, json.loads(took.read_text()))
        for name in (self.folder / "whole.modules").read_text().splitlines():
            if name not in sys.modules and not name.startswith(_NOT_BEFORE_A_FORK):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)

    def _begin(self, run: Path) -> None:
        """What must be there before the first attempt: of a report, the run that it is of."""
        if self.name == "report_again" and not run.exists():
            shutil.copytree(self.folder.parent / "report" / "whole", run)

    @property
    def current(self) -> Path:
        """The run under way."""
        numbers = [int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()]
        last = max(numbers, default=-1)
        return self.folder / str(last if last >= 0 and not (self.folder / str(last) / "checked").exists() else last + 1)

    def step(self, state: State) -> None:
        """One attempt on the run under way, killed at a random moment."""
        number = self.rng.choice(_SIGNALS)
        self._attempt(state, number, self._moment())

    def finish(self, state: State) -> None:
        """Let the run under way come to its end."""
        if self.current.exists():
            self._attempt(state, None, None)

    def _moment(self) -> float:
        """Seconds after the first row (negative: after the start), within what an attempt takes on this machine now."""
        if self.name in ("report_again", "export"):  # they store no rows
            return -self.rng.uniform(0, self.seconds)
        if self.name != "report" and self.rng.random() < 0.25:
            return -self.rng.uniform(0, max(self.seconds - self.after_s, 0.1))
        return self.rng.uniform(0, self.after_s)

    def _attempt(self, state: State, number: signal.Signals | None, moment: float | None) -> None:
        run = self.current
        self._begin(run)
        done = attempt(self.name, run, number, moment)
        counts = state.by_kind.setdefault(self.name, Counter())
        counts["attempts"] += 1
        self.spent_s += done.seconds
        self._remember(run, done.acknowledged)
        self._check_files(run, state)
        died = done.status < 0
        with (self.folder.parent / "attempts.log").open("a") as log:
            how = f"{number.name} at {moment:.3f}" if number is not None and moment is not None else "no signal"
            sent = f", {done.outlived_s:.1f} s after it" if done.outlived_s else ""
            log.write(f"{run}: {how} s -> {done.status} in {done.seconds:.1f} s{sent}\n")
        if number is not None and (died or done.status == 130):
            counts["kills"] += 1
            counts[number.name] += 1
        if number is not signal.SIGKILL and done.outlived_s > _UNHEARD_S:
            state.problems.append(f"{run}: went on for {done.outlived_s:.0f} s after {number and number.name}")
        if died and number is not signal.SIGKILL:
            state.problems.append(f"{run}: {number and number.name} ended it with {done.status}, not with 130")
        if done.status in _ENDS.get(self.name, (0,)) or (done.status == 1 and _skipped(run)):  # 1: all arms given up
            self.seconds, self.after_s = min(self.seconds, done.seconds), min(self.after_s, done.after_s)
            self._check_end(run, state)
        elif not died and done.status != 130:
            state.problems.append(f"{run}: exit status {done.status} after {number and number.name}")
            run.mkdir(exist_ok=True)
            (run / "checked").touch()

    def _remember(self, run: Path, acknowledged: set[Key]) -> None:
        if self.name != "export":
            run.mkdir(exist_ok=True)
        with (self.folder / f"{run.name}.acknowledged").open("a") as file:
            file.writelines(json.dumps(key) + "\n" for key in sorted(acknowledged))

    def _check_files(self, run: Path, state: State) -> None:
        """After a kill, every file is the old one or the new one."""
        for path in run.rglob("*.json"):
            if path.name.endswith(".part") or path.name == "begun.json":
                continue
            try:
                json.loads(path.read_bytes())
            except ValueError as error:
                state.by_kind[self.name]["torn"] += 1
                state.problems.append(f"{path}: {error}")

    def _check_end(self, run: Path, state: State) -> None:
        text = (self.folder / f"{run.name}.acknowledged").read_text()
        acknowledged = {tuple(json.loads(line)) for line in text.splitlines()}
        keys = Counter(_stored_keys(run))
        skipped = _skipped(run)
        expected = {key for key in self.expected if key[:3] not in skipped}
        lost = (acknowledged | expected) - set(keys)
        counts = state.by_kind[self.name]
        counts["lost"] += len(lost)
        counts["doubled"] += sum(count - 1 for count in keys.values())
        counts["rows"] += len(keys)
        counts["finished"] += 1
        counts["skipped"] += len(skipped)
        if lost:
            state.problems.append(f"{run}: lost {sorted(lost)[:3]}")
        for path in run.rglob("records.jsonl"):
            bad = [n for n, line in enumerate(path.read_bytes().splitlines(), 1) if not line.startswith(b'{"')]
            counts["torn"] += len(bad)
        if self.name == "export" and (unlike := _unlike(run, self.folder / "whole")):
            state.problems.append(f"{run}: {unlike[:3]} are not as in an uninterrupted export")
        for path in run.rglob("outcome.json"):
            ended = json.loads(path.read_bytes())
            if ended["state"] != "done" and ended["exit_status"] != 2 and not (ended["exit_status"] == 1 and skipped):
                state.problems.append(f"{path}: not done at exit status 0")
        if left := [str(path) for path in (*run.rglob(".*.part"), *run.parent.glob(".*.part"))]:
            state.problems.append(f"{run}: half-written files stay: {left[:3]}")
        (run / "checked").touch()


def attempt(name: str, run: Path, number: signal.Signals | None, moment: float | None) -> Attempt:
    """Run a command line in a fork, and send it a signal.

    Args:
        name: which command.
        run: its output directory.
        number: the signal; None for none.
        moment: seconds after the first row (of ``report``: after the report began); negative: after the start.
    """
    began = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(name, run, writer)
    os.close(writer)
    seen, acknowledged, buffer = 0.0, set[Key](), b""
    sent: float | None = None
    hears = number is signal.SIGKILL  # the others are for a command line, not for a Python that begins one
    os.set_blocking(reader, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            data = os.read(reader, 1 << 16)
            if not data:
                break
            buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if line == b"hears":
                hears = True
                continue
            if line != b"report":
                acknowledged.add(tuple(json.loads(line)))
            if not seen and (line == b"report" or name != "report"):
                seen = time.monotonic()
        now = time.monotonic()
        if number is not None and moment is not None and sent is None and hears:
            due = now - began >= -moment if moment < 0 else bool(seen) and now - seen >= moment
            if due:
                os.kill(child, number)
                sent = now
        if now - began > _LONGEST_S:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    over = time.monotonic()
    return Attempt(
        status=status,
        acknowledged=acknowledged,
        seconds=over - began,
        after_s=over - seen if seen else over - began,
        outlived_s=0.0 if sent is None else over - sent,
    )


def _child(name: str, run: Path, writer: int) -> None:
    """The command line, in the fork; never returns."""
    status = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):  # whatever this script, or nohup, made of them
            signal.signal(number, signal.SIG_DFL)
        place = "runs" if name == "report_again" else "output_dir"
        sys.argv = ["vlmbench", *COMMANDS[name], f"{place}={run}"]
        log = os.open(run.parent / f"{run.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _tell(run, writer)
        if name == "compiled":
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(run.parent / "compiled_code")
            _compile_on_a_cpu()
        from vlmbench.cli.main import main as command_line

        command_line()
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if run.name == "whole":
            run.with_name("whole.modules").write_text("\n".join(sys.modules))
        os._exit(status)


def _tell(run: Path, writer: int) -> None:
    """Let the command line say that it hears signals, the store which rows it holds, and the report that it begins."""
    import vlmbench.cli.main
    import vlmbench.report
    from vlmbench.records.store import RecordStore

    append, report = RecordStore.append, vlmbench.report.write_report

    def told(self: RecordStore, record: Any) -> None:
        append(self, record)
        if record.status == "ok":
            name = self.directory.name if self.directory.resolve() != run.resolve() else ""
            key = [name, record.point_id, record.sample_id, record.repeat, str(record.mode)]
            os.write(writer, json.dumps(key).encode() + b"\n")

    hear = vlmbench.cli.main.interrupt_on_signals

    def hearing() -> None:
        hear()
        os.write(writer, b"hears\n")

    def reporting(*arguments: Any, **named: Any) -> Any:
        os.write(writer, b"report\n")
        return report(*arguments, **named)

    RecordStore.append = told  # type: ignore[method-assign]
    vlmbench.report.write_report = reporting
    vars(vlmbench.cli.main)["interrupt_on_signals"] = hearing


def _stored_keys(run: Path) -> Iterator[Key]:
    """Keys of all measured rows below a run, twice where they are there twice; names of runs left out at the top."""
    for path in sorted(run.rglob("records.jsonl")):
        name = path.parent.name if path.parent != run else ""
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            if row["status"] == "ok":
                yield (name, row["point_id"], row["sample_id"], row["repeat"], row["mode"])


def _unlike(one: Path, other: Path) -> list[str]:
    """Names of files that only one of two folders has, or that differ."""
    names = {path.name for folder in (one, other) for path in folder.iterdir()}
    pairs = {name: (one / name, other / name) for name in names}
    return sorted(
        name for name, (a, b) in pairs.items() if not (a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes())
    )


def _compile_on_a_cpu() -> None:
    """Let transformers compile where there is no CUDA, in this process alone."""
    from transformers.generation import GenerationMixin

    from vlmbench.models import loading

    may, where = GenerationMixin._valid_auto_compile_criteria, loading._placement

    def told(self: Any, arguments: Any, config: Any) -> bool:
        from transformers import CompileConfig

        config.compile_config = CompileConfig(mode="default")
        config.compile_config._compile_all_devices = True
        return bool(may(self, arguments, config))

    def anywhere(runtime: Any, team: Any) -> Any:
        return where(replace(runtime, compile=False), team)

    vars(loading)["_placement"] = anywhere
    setattr(GenerationMixin, may.__name__, told)


def _skipped(run: Path) -> set[tuple[str, str, str]]:
    """(directory, point, sample) of requests that were given up because processes died in them."""
    found = set()
    for path in run.rglob("records.jsonl"):
        name = path.parent.name if path.parent != run else ""
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            if row["status"] == "skipped" and "processes in a row died" in str(row["reason"]):
                found.add((name, row["point_id"], row["sample_id"]))
    return found


def _import_everything() -> None:
    """What a run imports, once; forks share it. Nothing is computed: threads would not survive a fork."""
    import matplotlib as mpl
    import torch

    mpl.use("Agg")
    torch.set_num_threads(1)
    import torch._dynamo  # before modules of its own are imported one by one
    import transformers

    import vlmbench.cli.main
    import vlmbench.cli.tasks
    import vlmbench.figures.theme
    import vlmbench.models.loading
    import vlmbench.report.phase1
    import vlmbench.report.scaling
    import vlmbench.session.profile
    import vlmbench.session.study

    _ = transformers.AutoModelForImageTextToText, vlmbench


def _stored(root: Path) -> State:
    path = root / "kills.json"
    if not path.exists():
        return State()
    kept = json.loads(path.read_text())
    kept["by_kind"] = {kind: Counter(counts) for kind, counts in kept["by_kind"].items()}
    return State(**kept)


def _store(root: Path, state: State) -> None:
    (root / "kills.part").write_text(json.dumps(vars(state), indent=1))
    (root / "kills.part").replace(root / "kills.json")


if __name__ == "__main__":
    sys.exit(main())
