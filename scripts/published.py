"""Published results as the pages read them: runs of the present set or an earlier one, and their numbers in words."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from PIL import Image

from vlmbench.records.reading import opened, records_path
from vlmbench.text import DASH, digits, percent, span, tight_interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
MANIFEST = Path(__file__).resolve().parent / "results.txt"
ARCHIVE = "archive"
CARD = "h200"
MODELS: Mapping[str, str] = {
    "llava": "LLaVA-1.5-7B",
    "qwen": "Qwen2.5-VL-7B",
    "molmo": "Molmo-7B-D",
    "molmoe": "MolmoE-1B",
    "qwen3": "Qwen3-VL-8B",
    "internvl3": "InternVL3-8B",
    "gemma3": "Gemma 3 4B",
    "qwen2-7b": "Qwen2-VL-7B",
    "qwen2-2b": "Qwen2-VL-2B",
    "qwen25-3b": "Qwen2.5-VL-3B",
    "qwen3-4b": "Qwen3-VL-4B",
    "qwen3-2b": "Qwen3-VL-2B",
    "internvl3-2b": "InternVL3-2B",
    "onevision": "LLaVA-OneVision-7B",
    "next-mistral": "LLaVA-1.6-Mistral-7B",
    "next-vicuna": "LLaVA-1.6-Vicuna-7B",
    "molmo-o": "Molmo-7B-O",
    "molmo2-8b": "Molmo 2 8B",
    "molmo2-4b": "Molmo 2 4B",
    "paligemma2": "PaliGemma 2 3B",
    "idefics3": "Idefics3-8B",
    "smolvlm2": "SmolVLM2-2.2B",
    "smolvlm": "SmolVLM-2.2B",
    "qwen72": "Qwen2.5-VL-72B",
}
DRAWN = ("llava", "qwen", "molmo")  # whose runtimes pages show in figures
ACROSS = "models"  # the folder of figures of several models
MODELS_OF = ("eager", "cudagraph")  # runtimes whose models pages show in a figure
FULL = ("llava", "qwen")  # of these a page has a line for each runtime, measured or not
STUDIED = ("llava", "qwen", "molmo", "molmoe")  # whose kinds of token are compared; of the others there is phase 1
RUNTIMES: Mapping[str, str] = {
    "eager": "eager",
    "compiled": "decode compiled",
    "cudagraph": "captured graphs",
    "cudagraph_compiled": "captured, step compiled",
    "vllm": "vLLM",
    "two_gpus": "eager, two GPUs",
}
EACH = ("eager", "compiled", "cudagraph", "vllm")  # the runtimes of which each of them has a line
METHODS: Mapping[str, str] = {
    "fastv": "FastV",
    "pyramid_drop": "PyramidDrop",
    "visionzip": "VisionZip's selection",
    "keep_after_projector": "largest norm",
}
NOT_MEASURED = "not measured"
EARLIER = "†"
_PHASE = re.compile(r"(.+)_(phase[123])")
TRIES = "parts.tsv"
PROVENANCE, SET, SIDES = "provenance.json", "set.json", ("phase2", "phase3")
CUT_BY = frozenset(("interrupted", "time_limit"))
PIXELS = 2  # of a published figure, for one of the page that shows it
SERVER, SERVERS = "server.json", "cpu_llama_server"


def manifest() -> dict[str, str]:
    """Part to its arguments, as ``scripts/results.txt`` lists them."""
    lines = [line for line in MANIFEST.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {part.strip(): arguments.strip() for part, _, _, arguments in (line.split("|") for line in lines)}


@dataclass(frozen=True, kw_only=True)
class Try:
    """A try at a part, a line of ``parts.tsv``: how it ended, how long it took, and what code it ran."""

    status: int
    seconds: int
    code: str


def tries_of(runs: Path) -> dict[str, list[Try]]:
    """Part to the tries at it, in their order; empty where ``scripts/results.sh`` left no list."""
    found: dict[str, list[Try]] = {}
    listed = (runs / TRIES).read_text(encoding="utf-8") if (runs / TRIES).is_file() else ""
    for part, status, seconds, code, *_ in ((*line.split("\t"), "", "") for line in listed.splitlines()):
        found.setdefault(part, []).append(Try(status=int(status), seconds=int(seconds), code=code))
    return found


def folder_of(part: str, card: str) -> str:
    """Where a part's run is published: ``CARD_MODEL_RUNTIME/PHASE``, else ``CARD_PART``.

    Args:
        part: name of the run's directory.
        card: ``h200``.
    """
    found = _PHASE.fullmatch(part)
    return f"{card}_{found[1]}/{found[2]}" if found else f"{card}_{part}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A published run.

    Args:
        folder: relative to the results.
        summary: content of its ``summary.json``.
        provenance: of it.
        mark: what tells an earlier run from the present set.
        ended_by: why its points ended; None where the run did not live to say so.
    """

    folder: Path
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    mark: str = ""
    ended_by: frozenset[str] | None = None

    @property
    def cut(self) -> bool:
        """Whether the run was cut off before all was measured."""
        return self.ended_by is None or not CUT_BY.isdisjoint(self.ended_by)

    @property
    def code(self) -> str:
        """What measured it: the first letters of the hash of the package's source."""
        return code_of(self.provenance)


def pairs_of(comparison: Mapping[str, Any]) -> int:
    """How many pairs of runs in turns a stored comparison is of; 0 where the two took none."""
    return int((comparison["pairs"][0].get("in_turns") or {}).get("pairs", 0))


def code_of(provenance: Mapping[str, Any]) -> str:
    """The first letters of the hash of the package's source that measured."""
    return str(provenance["sessions"][0]["code"]["vlmbench"]["source_sha256"])[:8]


class Published:
    """What lies in a directory of results: by model, runtime and phase, methods, and the rest.

    Args:
        results: the directory.
        link: how a page reaches it, ``results`` or ``docs/results``.
    """

    def __init__(self, results: Path, link: str = "results") -> None:
        self.results, self.link = results, link
        self.codes = codes_of(results)

    def run(self, name: str, phase: str = "") -> Run | None:
        """The run of a folder, of the present set or else of an earlier one; None where there is none."""
        for folder in (Path(f"{CARD}_{name}") / phase, Path(ARCHIVE) / f"{CARD}_{name}" / phase):
            if (found := self.at(folder)) is not None:
                return found
        return None

    def at(self, folder: Path) -> Run | None:
        """The run in a folder, relative to the results; of a study with the provenance of its last sweep."""
        place = self.results / folder
        if (found := read(place / "summary.json")) is None:
            return None
        about = read(place / PROVENANCE) or read(place / SIDES[1] / PROVENANCE) or {}
        of_set = folder.parts[0] != ARCHIVE and (not self.codes or not about or code_of(about) in self.codes)
        points = read(place / "points.json")
        ended_by = None if points is None else frozenset(str(point["ended_by"]) for point in points["points"])
        return Run(folder=folder, summary=found, provenance=about, mark="" if of_set else EARLIER, ended_by=ended_by)

    def below(self, folder: Path) -> list[Run]:
        """All runs of a folder that say how they were made."""
        places = sorted({path.parent for path in folder.rglob("summary.json*") if (path.parent / PROVENANCE).is_file()})
        return [run for place in places if (run := self.at(place.relative_to(self.results)))]

    def comparison(self, name: str) -> Mapping[str, Any]:
        """What the token comparison of a study says; empty where both kinds of token were not swept."""
        found = self.run(name)
        rows = (found.summary.get("comparisons") if found else None) or []
        return rows[0] if rows else {}

    def names(self, models: Iterable[str] = MODELS) -> list[str]:
        """``MODEL_RUNTIME`` of all that a page shows of these models, in its order."""
        every = [f"{model}_{runtime}" for model in models for runtime in RUNTIMES]
        full = {f"{model}_{runtime}" for model in FULL for runtime in EACH}
        return [n for n in every if n in full or self.run(n, "phase1") or self.comparison(n)]

    def methods(self) -> list[tuple[str, str, str, Run]]:
        """(model, method, runtime, run) of interventions that were measured."""
        found = []
        for model in MODELS:
            for method in METHODS:
                for runtime in RUNTIMES:
                    run = self.run(f"{model}_{method}_{runtime}")
                    if run is not None and run.summary.get("arms"):
                        found.append((model, method, runtime, run))
        return found

    def rows(self, run: Run | None, words: str = "rows") -> str:
        """A link to the rows of a run."""
        return "" if run is None else f"[{words}]({self.link}/{run.folder.as_posix()})"

    def figure(self, name: str, words: str) -> str:
        """A picture, in half its pixels: HTML, for no Markdown that all readers know has a width; empty where it is
        not there.
        """
        file = self.results / name
        if not file.is_file():
            return ""
        with Image.open(file) as image:
            width = image.width // PIXELS
        return f'<img src="{self.link}/{name}" alt={quoteattr(words)} width="{width}">\n\n'


def codes_of(results: Path) -> dict[str, str]:
    """The states of the code whose runs make the present set, each with its commit; all runs do if none is named."""
    found: dict[str, str] = (read(results / SET) or {}).get("codes", {})
    return found


def reasons_of(results: Path) -> dict[str, str]:
    """In what a state of the code differs from the first of the present set, which it joined; a clause each."""
    found: dict[str, str] = (read(results / SET) or {}).get("reasons", {})
    return found


def read(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file, or of one packed beside its name (``.gz``); None where there is neither."""
    packed = path.with_name(f"{path.name}.gz")
    if path.is_file():
        text = path.read_bytes()
    elif packed.is_file():
        text = gzip.decompress(packed.read_bytes())
    else:
        return None
    content: dict[str, Any] = json.loads(text)
    return content


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def value(entry: Mapping[str, Any] | None, write: Callable[[float], str] = digits, key: str = "") -> str:
    """``622 (615–635)``; a dash for what is not there.

    Args:
        entry: with ``value``, ``low``, ``high``, or these behind ``key_``.
        write: the number in words.
        key: ``workload`` of ``workload``, ``workload_low``, ``workload_high``.
    """
    names = (key, f"{key}_low", f"{key}_high") if key else ("value", "low", "high")
    middle, low, high = ((entry or {}).get(name) for name in names)
    return DASH if middle is None else f"{write(middle)}{span_of(low, high, write)}".replace("-", "−")


def span_of(low: float | None, high: float | None, write: Callable[[float], str]) -> str:
    if low is None or high is None:
        return " (no interval)"
    if write is percent:
        return f" ({span(low, high, '%')})"
    ends = write(low), write(high)
    return f" ({tight_interval(low, high) if write is digits or ends[0] == ends[1] else '–'.join(ends)})"


def times(number: float) -> str:
    """A factor with as many decimals as tell it from 1: ``1.012``, ``1.27``."""
    return f"{number:.3f}" if abs(number - 1) < 0.1 else digits(number)


def who(name: str) -> tuple[str, str]:
    model, _, runtime = name.partition("_")
    return MODELS[model], RUNTIMES[runtime]


@cache
def rows_of(folder: Path) -> list[dict[str, Any]]:
    with opened(records_path(folder)) as lines:
        return [json.loads(line) for line in lines]


def measured(folder: Path, column: str) -> list[float]:
    return [float(row[column]) for row in rows_of(folder) if row["status"] == "ok" and row["point_id"] == "dataset"]


def by_request(folder: Path, column: str) -> dict[str, float]:
    """A time of each request of the workload, of the runs that count."""
    return {row["sample_id"]: float(row[column]) for row in counted(folder) if row["point_id"] == "dataset"}


def counted(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows_of(folder) if row["status"] == "ok" and row["mode"] == "instrumented"]


def cut_words(run: Run) -> str:
    return ", cut off" if run.cut else ""


_ELSEWHERE = (
    "output_dir", "report", "progress", "measurement.time_limit_s", "hydra",
    "measurement.turns.directory", "measurement.turns.members", "measurement.turns.runs",
)  # fmt: skip


def command_of(run: Run) -> str:
    """What was typed for a run, without where its rows went."""
    words = [str(word) for word in run.provenance["sessions"][0]["command"][1:]]
    kept = [word for word in words if word.partition("=")[0].partition("/")[0] not in _ELSEWHERE]
    return f"`python -m vlmbench {' '.join(kept)}`".replace("|", "\\|")
