"""Files that a command reads, damaged in every way: two lines and an error of ours, never a traceback."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlmbench.errors import VlmbenchError

RUNS = Path(__file__).parent / "contract" / "old_runs"
BYTES = {
    "empty": b"", "null": b"null", "a list": b"[]", "a number": b"7", "a text": b'"x"', "an object": b"{}",
    "NULs": b"\0" * 100, "UTF-16": '{"a": 1}'.encode("utf-16"), "deep": b"[" * 100_000, "digits": b"9" * 100_000,
    "an endless number": b'{"sessions": Infinity, "state": NaN}', "not UTF-8": b'{"a": "\xff"}', "a folder": None,
}  # fmt: skip
VALUES = {"null": None, "list": [], "text": "x", "negative": -1, "object": {}, "huge": 1e308}
MOST = 120  # kinds of damage of one file


def paths(tree: Any, prefix: tuple[Any, ...] = (), depth: int = 3) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in itertools.islice(items, 12):
        yield (*prefix, key)
        if depth > 1:
            yield from paths(value, (*prefix, key), depth - 1)


def damages(text: bytes) -> dict[str, bytes | None]:
    """What to the content that takes its place; None for a folder."""
    found: dict[str, bytes | None] = {
        **BYTES,
        "half": text[: len(text) // 2],
        "a mark in front": b"\xef\xbb\xbf" + text,
    }
    try:
        tree = json.loads(text)
    except ValueError:
        return found
    for path in paths(tree):
        for name, value in VALUES.items():
            damaged = json.loads(text)
            node = damaged
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
            found[f"{'.'.join(map(str, path))} is {name}"] = json.dumps(damaged).encode()
    kept = list(found)
    step = max(1, (len(kept) - len(BYTES)) // MOST)
    return {name: found[name] for name in [*kept[: len(BYTES) + 2], *kept[len(BYTES) + 2 :: step]]}


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
            place = folder / file
            place.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                place.unlink(missing_ok=True)
                place.mkdir()
            else:
                place.write_bytes(content)
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
