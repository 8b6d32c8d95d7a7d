"""Results that an offline experiment is given: run directories, phase files, multirun directories, older files.

Read are, in this order of preference within a directory: ``records.jsonl`` (with ``provenance.json`` beside it), then
phase files ``{"schema_version", "experiment_name", "provenance", "summary", "results": [row…]}``, then the same in its
subdirectories (a multirun). Files without a ``schema_version`` are taken for the older shape: ``results`` rows with
``T_total`` and at least one of ``num_vision_tokens``, ``max_new_tokens``, ``num_output_tokens``. Nothing is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlmbench.analysis.frames import left_out_words, load_runs
from vlmbench.errors import InputError
from vlmbench.records.comparable import differences, identity, with_mixture_named
from vlmbench.records.provenance import PROVENANCE_NAME
from vlmbench.records.reading import PACKED, RECORDS_NAME, records_in
from vlmbench.schema import SCHEMA_VERSION
from vlmbench.text import parse_json

# Phase files of the study before this one: top-level ``results`` rows with ``T_total`` and token counts, in ms.

_OUTPUT_NAMES = ("num_output_tokens", "num_generated_tokens", "max_new_tokens")
_COUNTS = ("num_vision_tokens", *_OUTPUT_NAMES)
_PROVENANCE_NAMES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("model", "name"): ("model_name", "model_path", "model_id", "model"),
    ("device", "name"): ("device_name", "gpu_name", "gpu", "device"),
    ("runtime", "dtype"): ("dtype", "torch_dtype", "precision"),
    ("runtime", "attention"): ("attn_implementation", "attention"),
}


def older_frame(file: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, list[str]]:
    """Rows of the older shape with the names that analysis knows, and notes on what they cannot tell.

    ``T_total`` and one count are needed; every other key is optional. Rows without a ``T_total`` are left out.

    Raises:
        InputError: no row has what is needed; the message lists the keys that are there.
    """
    frame = pd.DataFrame([{k: v for k, v in row.items() if not isinstance(v, list | dict)} for row in rows])
    counts = [name for name in _COUNTS if name in frame]
    if "T_total" not in frame or not counts:
        raise InputError(
            f"'{file}' has no schema_version, and its rows lack {'T_total' if counts else ' or '.join(_COUNTS[:2])} "
            f"(they have {', '.join(sorted(map(str, frame.columns))[:12])}).\n"
            "Rows of older files need T_total (ms) and num_vision_tokens or max_new_tokens."
        )
    for name in frame.columns:
        if str(name).startswith(("T_", "num_", "flops_", "max_new_tokens")):
            frame[name] = pd.to_numeric(frame[name], errors="coerce")
    notes = ["older file: its device, weights and runtime are only as well known as it says"]
    timed = frame["T_total"].notna()
    if not timed.all():
        notes.append(f"{int((~timed).sum())} rows without T_total are left out")
    frame = frame[timed].reset_index(drop=True)
    if frame.empty:
        raise InputError(f"'{file}' has no row with a number in T_total; nothing was measured there")
    output = next((name for name in _OUTPUT_NAMES if name in frame), None)
    if output is not None and output != "num_output_tokens":
        frame["num_output_tokens"] = frame[output]
        notes.append(f"output tokens are taken from '{output}', which the older file asked for and did not observe")
    notes.extend(_doubts(frame))
    if "status" not in frame:
        frame["status"] = "ok"
    return frame, notes


def _doubts(frame: pd.DataFrame) -> list[str]:
    doubts = []
    if "T_LLM_decode" in frame and "num_output_tokens" in frame:
        clamped = int(np.sum((frame["T_LLM_decode"] == 0) & (frame["num_output_tokens"] > 1)))
        if clamped:
            doubts.append(f"T_LLM_decode is 0 in {clamped} rows that generated tokens: it was subtracted and clamped")
    if "num_vision_tokens" in frame and "num_vision_patches" not in frame:
        doubts.append("its vision tokens may be encoder patches, of which the language model sees fewer")
    return doubts


def older_provenance(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Model, device and runtime, as far as the top level, ``config``, ``metadata`` or ``args`` of an older file say."""
    places = [content, *(content[k] for k in ("config", "metadata", "args") if isinstance(content.get(k), Mapping))]
    found: dict[str, dict[str, Any]] = {}
    for (part, name), keys in _PROVENANCE_NAMES.items():
        value = next((p[k] for p in places for k in keys if isinstance(p.get(k), str) and p[k]), None)
        if value is not None:
            found.setdefault(part, {})[name] = value.removeprefix("torch.")
    return found


_NOT_PHASE_FILES = frozenset({PROVENANCE_NAME, "summary.json", "latency_model.json", "exp5_token_comparison.json"})
_MAX_DEPTH = 4  # multirun/<date>/<time>/<job>


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultSet:
    """Rows that were measured together.

    Args:
        path: the directory or file they came from.
        frame: one row a run, as :func:`vlmbench.analysis.frames.load_runs` gives it.
        provenance: content of ``provenance.json``; what is not known is absent.
        notes: what a reader must know about these rows.
        left_out: why other runs of the place that they were read from could not be read, a sentence each.
        merged: the runs that were put together here; empty where it is one run.
    """

    path: Path
    frame: pd.DataFrame
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    merged: tuple[ResultSet, ...] = ()

    @property
    def runs(self) -> tuple[ResultSet, ...]:
        """The runs that these rows come from, each with the place that it was read from."""
        return self.merged or (self,)


def read_results(path: Path | str | Sequence[Path | str]) -> list[ResultSet]:
    """Everything measured under a path, or under several: a run that is under two of them is read once.

    Returns:
        One set a run; at least one. Jobs of a multirun that cannot be read are named with the others.

    Raises:
        InputError: nothing is there, or it is torn, empty or of another schema; the message says which and what to do.
    """
    if not isinstance(path, Path | str):
        every = [one for single in path for one in read_results(single)]
        return list({one.path.resolve(): one for one in reversed(every)}.values())[::-1]
    path = Path(path).expanduser()
    if path.is_file():
        return [_read_records(path) if _holds_rows(path) else read_phase_file(path)]
    if not path.is_dir():
        raise InputError(
            f"no results at '{path}': there is no such file or directory.\n"
            "Give a run directory, a multirun directory, or a phase file (…/phase2_scaling.json)."
        )
    found, broken = [], []
    for place in _places(path, _MAX_DEPTH):
        try:
            found.append(_read_records(place) if _holds_rows(place) else read_phase_file(place))
        except InputError as error:
            broken.append(str(error).splitlines()[0])
    if not found and len(broken) == 1:
        raise InputError(
            f"{broken[0]}.\nRun the experiment again with the same output_dir: it continues where it stopped."
        )
    if not found:
        what = f"; unreadable: {'; '.join(broken)}" if broken else ""
        raise InputError(
            f"no results under '{path}': no {RECORDS_NAME} and no phase file in it or its subdirectories{what}.\n"
            "Give the directory that a run wrote (output_dir), or the phase file itself."
        )
    return [replace(one, left_out=tuple(broken)) for one in found]


def _places(folder: Path, depth: int) -> Iterator[Path]:
    """Files to read in a folder: its records, else its phase files, else those of its subfolders in natural order."""
    if (rows := records_in(folder)) is not None:
        yield rows
        return
    files = sorted(f for f in folder.glob("*.json") if f.name not in _NOT_PHASE_FILES and _looks_like_phase_file(f))
    if files:
        yield from files
        return
    if depth:
        for child in sorted((c for c in folder.iterdir() if c.is_dir() and c.name[0] != "."), key=_natural):
            yield from _places(child, depth - 1)


def _holds_rows(path: Path) -> bool:
    return path.name.endswith((".jsonl", *(f".jsonl{suffix}" for suffix in PACKED)))


def _natural(path: Path) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path.name)]


def _looks_like_phase_file(path: Path) -> bool:
    # The key stands near the top in files that vlmbench writes, but after an arbitrarily long summary.
    with path.open("rb") as stream:
        carried = b""
        while block := stream.read(1 << 20):
            if b'"results"' in carried + block:
                return True
            carried = block[-16:]
    return path.stat().st_size == 0 or path.name.startswith(("phase", "exp"))


def _read_records(file: Path) -> ResultSet:
    frame, provenance = load_runs(file), _read_provenance(file.parent)
    notes = (left_out_words(missing),) if (missing := frame.attrs["lines_left_out"]) else ()
    return ResultSet(path=file.parent, frame=frame, provenance=provenance, notes=(*notes, *_mixture(provenance)))


def _read_provenance(folder: Path) -> dict[str, Any]:
    file = folder / PROVENANCE_NAME
    if not file.is_file():
        return {}
    value = _read_json(file)
    return with_mixture_named(value) if isinstance(value, Mapping) else {}


def _mixture(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    mixed = provenance.get("unlike")
    return (f"a mixture of unlike sessions: {'; '.join(map(str, mixed))}",) if mixed else ()


def _read_json(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read '{file}': {getattr(error, 'strerror', None) or error}") from None
    if not text.strip():
        raise InputError(f"'{file}' is empty; the run that should have written it did not finish")
    try:
        return parse_json(text)
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):
            raise InputError(f"'{file}' is not JSON that can be read: {error}") from None
        raise InputError(
            f"'{file}' is torn or not JSON (line {error.lineno}, column {error.colno}: {error.msg}).\n"
            f"If its run directory still holds {RECORDS_NAME}, give the directory; else measure again."
        ) from None


def read_phase_file(file: Path) -> ResultSet:
    """One phase file, of this vlmbench or of the older shape.

    Raises:
        InputError: it is empty, torn, of another schema, or its rows lack what is needed.
    """
    content = _read_json(file)
    if not isinstance(content, Mapping) or not isinstance(content.get("results"), list):
        raise InputError(
            f"'{file}' is not a phase file: it has no list 'results' at its top level.\n"
            "Give a file like phase2_scaling.json or exp4b_language_tokens.json, or a run directory."
        )
    rows = content["results"]
    if not rows:
        raise InputError(f"'{file}' holds no results; nothing was measured there")
    if not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"'{file}' holds results that are not rows (mappings of names to values)")
    if "schema_version" not in content:
        frame, notes = older_frame(file, rows)
        return ResultSet(path=file, frame=frame, provenance=older_provenance(content), notes=tuple(notes))
    if content["schema_version"] != SCHEMA_VERSION:
        raise InputError(
            f"'{file}' has schema_version {content['schema_version']!r}, this vlmbench reads {SCHEMA_VERSION}.\n"
            "Use the version that wrote it, or measure again."
        )
    stored = content.get("provenance")
    provenance = with_mixture_named(stored) if isinstance(stored, Mapping) else {}
    return ResultSet(path=file, frame=_frame(rows), provenance=provenance, notes=_mixture(provenance))


def _frame(rows: list[Mapping[str, Any]]) -> pd.DataFrame:
    flat = [{name: value for name, value in row.items() if not isinstance(value, list | dict)} for row in rows]
    for cells, row in zip(flat, rows, strict=True):
        if isinstance(row.get("flags"), list):
            cells["flags"] = " ".join(map(str, row["flags"]))
    frame = pd.DataFrame(flat)
    if "status" not in frame:
        frame["status"] = "ok"
    # Columns of None and numbers come out as object; counts and times must be numbers.
    for name in [name for name in frame.columns if frame[name].dtype.kind == "O"]:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if bool((numbers.notna() == frame[name].notna()).all()):
            frame[name] = numbers
    return frame


def merge_like(sets: Sequence[ResultSet]) -> list[ResultSet]:
    """Sets of equal identity made one (the jobs of a multirun that share a model), others kept apart, order kept."""
    groups: list[list[ResultSet]] = []
    for one in sets:
        home = next((g for g in groups if identity(g[0].provenance) == identity(one.provenance)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return [_merged(group) for group in groups]


def _merged(group: Sequence[ResultSet]) -> ResultSet:
    if len(group) == 1:
        return group[0]
    notes = tuple(dict.fromkeys(note for one in group for note in one.notes))
    left_out = tuple(dict.fromkeys(why for one in group for why in one.left_out))
    runs = tuple(run for one in group for run in one.runs)
    rows = concatenated([one.frame for one in group])
    return replace(group[0], frame=rows, notes=notes, left_out=left_out, merged=runs)


def rows_of_both(a: ResultSet, b: ResultSet) -> pd.DataFrame:
    """All rows of two sets, those of a run that is in both (by its place) once."""
    runs = {run.path.resolve(): run.frame for run in (*a.runs, *b.runs)}
    return concatenated(list(runs.values())) if len(runs) > 1 else a.frame


def concatenated(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of several runs below each other; texts as plain objects, for their categories differ."""
    plain = [f.astype(dict.fromkeys(f.select_dtypes("category").columns, object)) for f in frames]
    return pd.concat(plain, ignore_index=True, sort=False)


def pair(
    left: Sequence[ResultSet], right: Sequence[ResultSet], *, allow_unlike: bool = False
) -> list[tuple[ResultSet, ResultSet]]:
    """Each set on the left with the set on the right that is like it.

    Args:
        left, right: as :func:`merge_like` gives them.
        allow_unlike: pair even unlike sets, when there is one on each side.

    Raises:
        InputError: nothing matches, and the message says what differs between the closest two; or a set is itself a
            mixture of unlike sessions.
    """
    if not allow_unlike:
        _refuse_mixtures([*left, *right])
    pairs = []
    closest: tuple[list[str], ResultSet, ResultSet] | None = None
    for a in left:
        for b in right:
            unlike = differences(a.provenance, b.provenance)
            if not unlike or (allow_unlike and len(left) == len(right) == 1):
                pairs.append((a, b))
                break
            if closest is None or len(unlike) < len(closest[0]):
                closest = (unlike, a, b)
    if pairs:
        return pairs
    assert closest is not None
    unlike, a, b = closest
    raise InputError(
        f"'{a.path}' and '{b.path}' were not measured alike, so a ratio of their costs would mean nothing: "
        f"{'; '.join(unlike)}.\n"
        "Measure both on the same model, device, dtype and runtime, or set allow_unlike=true if you mean it."
    )


def _refuse_mixtures(sets: Sequence[ResultSet]) -> None:
    for one in sets:
        if mixed := with_mixture_named(one.provenance).get("unlike"):
            raise InputError(
                f"'{one.path}' holds rows of unlike sessions: {'; '.join(mixed)}.\n"
                "Measure them in directories of their own, or set allow_unlike=true if you mean it."
            )
