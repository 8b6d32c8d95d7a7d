"""Files that a command reads, damaged in every way: two lines and an error of ours, never a traceback.

Some damages of each file here; ``make fuzz`` tries them all.
"""

from __future__ import annotations

import itertools
import json
import logging
import lzma
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.made import usual, write
from vlmbench.errors import VlmbenchError

RUNS = Path(__file__).parent / "contract" / "old_runs"
BYTES = {
    "empty": b"", "null": b"null", "a list": b"[]", "a number": b"7", "a text": b'"x"', "an object": b"{}",
    "NULs": b"\0" * 100, "UTF-16": '{"a": 1}'.encode("utf-16"), "deep": b"[" * 100_000, "digits": b"9" * 100_000,
    "an endless number": b'{"sessions": Infinity, "state": NaN}', "not UTF-8": b'{"a": "\xff"}',
    "a key twice": b'{"a": 1, "a": 2, "schema_version": 1, "schema_version": 2}',
}  # fmt: skip
PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a loop of links": lambda place: place.symlink_to(place.name),
    "a link to nothing": lambda place: place.symlink_to("nowhere"),
    "nothing": lambda place: None,
    "no permission": lambda place: (place.touch(), place.chmod(0)),
}
if os.geteuid() == 0:
    del PLACES["no permission"]  # root reads everything
Damage = bytes | Callable[[Path], object]
VALUES = {"null": None, "list": [], "text": "x", "negative": -1, "object": {}, "huge": 1e308}
ALL = "VLMBENCH_FUZZ" in os.environ
MOST = 400 if ALL else 40  # kinds of damage of one file, beside those that every file gets


def paths(tree: Any, prefix: tuple[Any, ...] = (), depth: int = 3) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in itertools.islice(items, None if ALL else 12):
        yield (*prefix, key)
        if depth > 1:
            yield from paths(value, (*prefix, key), depth - 1)


def damages(text: bytes) -> dict[str, Damage]:
    """What, to the content that takes its place or what makes something else of it."""
    found: dict[str, Damage] = {
        **BYTES,
        **PLACES,
        "half": text[: len(text) // 2],
        "a mark in front": b"\xef\xbb\xbf" + text,
    }
    first, rest = text, b""  # what is changed, and what stays behind it
    rng = random.Random(len(text))
    for number in range(100 if ALL else 5):  # some bytes that are missing, or otherwise
        at = rng.randrange(len(text))
        found[f"bytes {number}"] = text[:at] + rng.randbytes(rng.randrange(4)) + text[at + rng.randrange(4) :]
    always = len(found)
    try:
        json.loads(text)
    except ValueError:
        first, _, rest = text.partition(b"\n")  # a row a line
        rest = b"\n" + rest
    try:
        tree = json.loads(first)
    except ValueError:
        return found
    for path in paths(tree):
        for name, value in VALUES.items():
            damaged = json.loads(first)
            node = damaged
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            found[f"{'.'.join(map(str, path))} is {name}"] = json.dumps(damaged).encode() + rest
    kept = list(found)
    step = max(1, (len(kept) - always) // MOST)
    return {name: found[name] for name in [*kept[:always], *kept[always::step]]}


def damage(place: Path, content: Damage) -> None:
    """Put it in the place of a file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        place.write_bytes(content)
    else:
        place.unlink(missing_ok=True)
        content(place)


def commands(folder: Path) -> dict[str, Callable[[], object]]:
    """What reads a run directory, without Hydra, a model or figures."""
    from vlmbench.analysis.results import read_results
    from vlmbench.cli import grids
    from vlmbench.cluster.collect import collect
    from vlmbench.records.run_directory import RunDirectory

    config = json.loads((RUNS / folder.name / "provenance.json").read_text())["config"]

    def resume() -> None:
        with RunDirectory(folder, config) as run, run.rows():
            pass

    return {
        "status": lambda: grids.run("status", str(folder.parent)),
        "collect": lambda: collect(folder.parent, folder.parent / "out", figures=False),
        "token_comparison": lambda: read_results(folder),
        "resume": resume,
    }


def problems(folder: Path, file: str, text: bytes, only: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """How much was tried, and everything that ended otherwise than it should."""
    tried, found = 0, []
    for what, content in damages(text).items():
        for command in only or ("status", "token_comparison", "resume"):
            shutil.rmtree(folder.parent, ignore_errors=True)
            shutil.copytree(RUNS / folder.name, folder)
            damage(folder / file, content)
            tried += 1
            try:
                commands(folder)[command]()
            except VlmbenchError as error:
                if len(str(error).strip().splitlines()) > 2 or error.exit_status not in (1, 2):
                    found.append(f"{file}, {what}: {command} says {error}")
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                found.append(f"{file}, {what}: {command}: {error!r:.200} at {where.filename}:{where.lineno}")
    return tried, found


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("phase2_done", "provenance.json"), ("phase2_done", "outcome.json"), ("phase2_done", "points.json"),
        ("phase2_done", "begun.json"), ("phase2_done", ".run.lock"), ("phase2_done", "records.jsonl"),
        ("phase1_interrupted", "records.jsonl"), ("phase2_done", ".vlmbench/x/submission.json"),
        ("phase2_done", "study.json"),
    ],
)  # fmt: skip
def test_no_damaged_file_ends_in_a_traceback(
    tmp_path: Path, run: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {
        "begun.json": b'{"now": null, "deaths": [["p", "s", "bare", 1]]}',
        ".run.lock": b'{"host": "h", "pid": 1, "process_started_unix_s": 1.0, "job_id": null, "since_unix_s": 1.0}',
        ".vlmbench/x/submission.json": json.dumps({
            "cluster": "local", "job_name": "x", "submitted_unix_s": 1.0, "settings": {},
            "tasks": [{"index": 0, "directory": "0_x", "overrides": ["a=1"], "job_id": "7"}],
        }).encode(),
        "study.json": b'{"schema_version": 1, "parts": {"phase2": "phase2/summary.json"}}',
    }  # fmt: skip
    text = made[file] if file in made else (RUNS / run / file).read_bytes()
    logging.disable(logging.CRITICAL)
    try:
        tried, found = problems(tmp_path / "tree" / run, file, text)
    finally:
        logging.disable(logging.NOTSET)
    assert tried >= 3 * len(BYTES)
    assert not found, f"{len(found)} of {tried}:\n" + "\n".join(found[:20])


@pytest.mark.parametrize("file", ["records.jsonl", "provenance.json", "outcome.json"])
def test_collect_reads_damaged_files(tmp_path: Path, file: str) -> None:
    pytest.importorskip("pyarrow")
    logging.disable(logging.CRITICAL)
    try:
        text = (RUNS / "phase2_done" / file).read_bytes()
        tried, found = problems(tmp_path / "tree" / "phase2_done", file, text, only=("collect",))
    finally:
        logging.disable(logging.NOTSET)
    assert tried >= len(BYTES)
    assert not found, f"{len(found)} of {tried}:\n" + "\n".join(found[:20])


def latency_model(file: Path) -> object:
    from vlmbench.analysis.latency_model import LatencyModel

    return LatencyModel.load(file)


def phase_file(file: Path) -> object:
    from vlmbench.analysis.results import read_results

    return read_results(file)


def task_file(file: Path) -> object:
    from vlmbench.cli.node import _read

    return _read(file)


def points(file: Path) -> object:
    from vlmbench.report.phase1_summary import read_points

    return read_points(file.parent)


def provenance(file: Path) -> object:
    from vlmbench.analysis.floors import peaks_of
    from vlmbench.api.run import Run
    from vlmbench.report.phase1_summary import provenance_of

    found = provenance_of(file.parent)
    return peaks_of(found), Run(directory=file.parent).kind


def arrivals(file: Path) -> object:
    from vlmbench.engines.endpoint.arrivals import read_trace

    return read_trace(file)


def vqa_questions(file: Path) -> object:
    from vlmbench.data.vqa_files import JsonFile
    from vlmbench.data.vqa_index import build_index

    return build_index(JsonFile(path=file), None)


def folder_questions(file: Path) -> object:
    from vlmbench.data.image_folder import ImageFolder

    return len(ImageFolder(root=file.parent, questions=file).open())


def checkpoint(file: Path) -> object:
    from vlmbench.models.checkpoint import check_folder

    return check_folder(file.parent)


def a_search(file: Path) -> object:
    """The trials of a search, one of whose files is damaged."""
    from vlmbench.cluster.trials import trials

    search = file.parent if file.name == "search.json" else file.parent / "s"
    search.mkdir(exist_ok=True)
    whole = {
        "search.json": SEARCH,
        "a/objective.json": OBJECTIVE,
        "b/objective.json": OBJECTIVE,
        "a/.hydra/overrides.yaml": OVERRIDES,
    }
    for run in ("a", "b"):
        shutil.copytree(RUNS / "phase2_done", search / run)
    for name, text in whole.items():
        if Path(name).name != file.name:
            (search / name).write_bytes(text)
        elif name.startswith("a/"):
            (search / name).unlink(missing_ok=True)
            if os.path.lexists(file):
                file.rename(search / name)
    return trials(search)


def a_summary(file: Path) -> object:
    from vlmbench.records.objective import objectives

    return objectives(file.parent, ["T_request.p50", "experiment_name.a.0"])


def hashes(file: Path) -> object:
    from vlmbench.models.checkpoint import listed_hashes

    return listed_hashes(file.parent)


def released_config(file: Path) -> object:
    from vlmbench.models.molmo.checkpoint_config import convert_config, read_released_config

    return convert_config(read_released_config(file.parent))


def weight_index(file: Path) -> object:
    from vlmbench.models.molmo.checkpoint_source import _weight_files

    return _weight_files(file.parent)


SEARCH = b'{"schema_version": 1, "objective": ["T_total.p50"], "directions": ["minimize"]}'
OBJECTIVE = (
    b'{"objectives": [{"name": "T_total.p50", "value": 1.5, "low": 1.0, "high": 2, "n": 9, "effective_n": 5.0}]}'
)
OVERRIDES = b"- experiment=phase2\n- output.tokens=4\n"
SUMMARY = json.dumps(
    {
        "experiment_name": "x",
        "distribution": {"T_request": {"workload": {"p50": {"value": 1.0, "low": 0.5, "high": 2.0}}}},
    }
).encode()
RELEASED = json.dumps(
    {"model_type": "molmo", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100}
).encode()
TASK: dict[str, Any] = {
    "index": 0, "directory": "0_x", "overrides": ["a=1"], "config": {"seed": 0}, "requeues": 1, "grace_s": 1.0,
    "source_sha256": "a",
}  # fmt: skip
QUESTIONS = {"questions": [{"question_id": 1, "image_id": 2, "question": "what?"}]}


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("latency_model.json", None, latency_model),
        ("phase2_scaling.json", None, phase_file),
        ("points.json", None, points),
        ("provenance.json", None, provenance),
        ("0.json", json.dumps(TASK).encode(), task_file),
        ("search.json", SEARCH, a_search),
        ("objective.json", OBJECTIVE, a_search),
        ("overrides.yaml", OVERRIDES, a_search),
        ("summary.json", SUMMARY, a_summary),
        ("SHA256SUMS", b"0" * 64 + b"  model.safetensors\n", hashes),
        ("config.json", RELEASED, released_config),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}', weight_index),
        ("trace.txt", b"0.0\n0.5\n1\n", arrivals),
        ("questions.json", json.dumps(QUESTIONS).encode(), vqa_questions),
        ("questions.jsonl", b'{"image": "a.png", "question": "what?"}\n', folder_questions),
        ("questions.csv", b"image,question\na.png,what?\n", folder_questions),
        ("config.json", b'{"model_type": "qwen2_5_vl", "text_config": {"a": [1]}}', checkpoint),
    ],
)
def test_no_damaged_file_that_is_given_ends_in_a_traceback(
    tmp_path: Path, name: str, text: bytes | None, read: Callable[[Path], object]
) -> None:
    whole = (RUNS / "phase2_done" / name).read_bytes() if text is None else text
    found, told = [], 0
    for what, content in damages(whole).items():
        folder = tmp_path / "x"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        damage(folder / name, content)
        try:
            read(folder / name)
        except VlmbenchError as error:
            told += 1
            if len(str(error).strip().splitlines()) > 2:
                found.append(f"{what}: {error}")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found.append(f"{what}: {error!r:.200} at {where.filename}:{where.lineno}")
    assert told or name == "overrides.yaml", "no damage was noticed"  # that a run does not say it is no error
    assert not found, f"{len(found)}:\n" + "\n".join(found[:20])


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("baseline", "provenance.json"), ("baseline", "records.jsonl"), ("candidate", "provenance.json"),
        ("candidate", "records.jsonl"), ("candidate", "records.jsonl.xz"), ("saved", "provenance.json"),
        ("saved", "records.jsonl.gz"), ("saved", "baseline.json"),
    ],
)  # fmt: skip
def test_compare_with_a_damaged_file_is_refused_or_judged(tmp_path: Path, what: str, file: str) -> None:
    """Two lines and status 2, or a verdict where the damage is to nothing that it needs: never a regression."""
    from vlmbench.analysis.two_sides import judge
    from vlmbench.records import baselines

    whole = {side: write(tmp_path / side, usual(20, 20, seed)) for seed, side in enumerate(("baseline", "candidate"))}
    damaged = {**whole, what: tmp_path / "damaged" / "x"}
    if what == "saved":
        baselines.save("x", [whole["baseline"]], whole["baseline"], tmp_path / "kept")
        whole["saved"] = tmp_path / "kept" / "x"
    if file == "records.jsonl.xz":
        rows = whole[what] / "records.jsonl"
        (whole[what] / file).write_bytes(lzma.compress(rows.read_bytes()))
        rows.unlink()

    def verdict() -> int:
        before = baselines.find("x", tmp_path / "damaged") if what == "saved" else damaged["baseline"]
        return judge(before, damaged["candidate"], threshold=0.3, allow_unlike=False).exit_status

    shutil.copytree(whole[what], damaged[what])
    assert verdict() == 0
    found, told = [], 0
    every = damages((whole[what] / file).read_bytes())
    for name in [*list(every)[:20], *list(every)[20 :: 4 if ALL else 8]]:
        shutil.rmtree(damaged[what])
        shutil.copytree(whole[what], damaged[what])
        damage(damaged[what] / file, every[name])
        try:
            if (status := verdict()) not in (0, 2):
                found.append(f"{name}: status {status}")
        except VlmbenchError as error:
            told += 1
            if len(str(error).strip().splitlines()) > 2 or error.exit_status != 2:
                found.append(f"{name}: {error.exit_status} {error}")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            found.append(f"{name}: {error!r:.200} at {where.filename}:{where.lineno}")
    assert told, "no damage was noticed"
    assert not found, f"{len(found)}:\n" + "\n".join(found[:20])


def test_a_submission_that_leads_out_of_its_sweep_is_named_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlmbench.cluster.grid import find_runs

    shutil.copytree(RUNS / "phase2_done", tmp_path / "a")
    folder = tmp_path / ".vlmbench" / "x"
    folder.mkdir(parents=True)
    task = {"index": 0, "directory": f"..{os.sep}..{os.sep}etc", "overrides": [], "job_id": None}
    content = {"cluster": "slurm", "job_name": "x", "submitted_unix_s": 1.0, "settings": {}, "tasks": [task]}
    (folder / "submission.json").write_text(json.dumps(content))
    assert [run.directory for run in find_runs(tmp_path)] == [tmp_path / "a"]
    said = capsys.readouterr().err
    assert "must lie below the sweep's" in said
    assert "submission.json" in said
