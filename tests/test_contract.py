"""What users and stored results rely on stays: tests/contract/README.md says what is pinned and how it may change.

Nothing here names a module of vlmbench but the ``_target_`` paths that stored configurations hold.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.runs import COMMANDS, GOLDEN, HERE, OLD_RUNS, SMALL, exceptions, golden, run
from tests.contract.trees import Section, Sections, differences, excused, merged, tree

TARGETS: list[dict[str, Any]] = yaml.safe_load((HERE / "targets.yaml").read_text())


def complaints(name: str, now: Sections) -> list[str]:
    """What a golden file and what there is now do not have in common, less what the three lists name."""
    before = golden(name)
    added, removed, changed = (exceptions(kind) for kind in ("added", "removed", "changed"))
    found = []
    for section in dict.fromkeys([*before, *now]):
        where = f"{name} {section}"
        old, new = before.get(section, {}), now.get(section, {})
        missing, fresh, other = differences(old, new)
        found += [f"{where}: '{k}' is missing (removed.yaml)" for k in missing if not excused(removed, where, k)]
        found += [f"{where}: '{k}' is new (added.yaml)" for k in fresh if not excused(added, where, k)]
        found += [
            f"{where}: '{k}' was {old[k]} and is {new[k]} (changed.yaml)"
            for k in other
            if not excused(changed, where, k)
        ]
    return found


def kept(name: str, now: Sections) -> None:
    """Fail with every difference that has no reason in one of the lists."""
    found = complaints(name, now)
    assert not found, (
        f"{len(found)} differences from tests/contract/golden/{name}.yaml; put it right, or name it with its reason in "
        "the list of tests/contract that stands in brackets:\n" + "\n".join(found[:60])
    )


# Options, choices, defaults, exit statuses: fast, no model is loaded


def test_options_choices_and_defaults(tmp_path: Path) -> None:
    kept("options", COMMANDS["options"](tmp_path)["options"])


def test_help_says_how_to_begin(tmp_path: Path) -> None:
    shown = run(tmp_path, "--help")
    assert shown.returncode == 0
    for words in (
        "python -m vlmbench experiment=phase1", "output_dir=DIR", "-m", "--cfg job", "VLMBENCH_TRACEBACK=1",
        "basic (default), submitit_local, local, slurm, anvil",
    ):  # fmt: skip
        assert words in shown.stdout, words


@pytest.mark.parametrize(
    "arguments",
    [("model=nope",), ("measurement.repeats=0",), ("nothing=1",), ("dataset=vqa_v2", "dataset.root=nowhere")],
)
def test_bad_input_is_status_2_and_leaves_nothing_behind(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run(tmp_path, "experiment=smoke", *arguments, "output_dir=out")
    assert done.returncode == 2, done.stderr
    assert "vlmbench: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_stored_targets_stay_valid(tmp_path: Path) -> None:
    """The one error is the one put there on purpose: all components are found, their arguments checked, and built."""
    assert wrong(tmp_path, [{"under": "probe.x", "node": {"_target_": "vlmbench.no.Probe"}}]) != ""
    others = [target for target in TARGETS if target["under"] != "dataset"]
    for dataset in (target for target in TARGETS if target["under"] == "dataset"):
        assert wrong(tmp_path, [dataset, *others]) == ""


def wrong(where: Path, targets: list[dict[str, Any]]) -> str:
    """What the command line says against components, each given as a stored configuration holds it."""
    arguments = []
    for target in targets:
        if target["under"] in ("model", "dataset", "sweep"):  # a group: what was chosen there goes first
            arguments.append(f"~{target['under']}")
        arguments.append(f"++{target['under']}={in_words(target['node'])}")
    done = run(where, *arguments, "measurement.repeats=0", "output_dir=out")
    assert done.returncode == 2, done.stderr
    purpose = "'measurement.repeats' must be 1 or more (got 0)\n"
    assert done.stderr.endswith(purpose), done.stderr
    return done.stderr.removesuffix(purpose).removeprefix("vlmbench: ")


def in_words(node: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(node, dict):
        return "{" + ",".join(f"{key}:{in_words(value)}" for key, value in node.items()) + "}"
    return json.dumps(node)


@pytest.mark.slow
def test_the_converter_keeps_its_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlmbench.models.molmo.convert", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


# Runs of the tiny model: exit statuses 1 and 130, directories begun before


def test_a_request_that_fails_is_status_1(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(2):
        Image.new("RGB", (64, 48), (index * 50, 100, 100)).save(tmp_path / "images" / f"{index}.jpg")
    (tmp_path / "images" / "1.jpg").write_bytes((tmp_path / "images" / "1.jpg").read_bytes()[:200])
    given = ("dataset=image_folder", "dataset.root=images", "dataset.num_samples=2", "report=none")
    small = [argument for argument in SMALL if not argument.startswith("dataset.")]
    done = run(tmp_path, "experiment=smoke", *small, *given, "measurement.reference=false", "output_dir=out")
    assert done.returncode == 1, done.stderr
    assert json.loads((tmp_path / "out" / "outcome.json").read_text())["exit_status"] == 1


def old_run(where: Path, name: str) -> tuple[Path, list[str]]:
    """A copy of a stored run directory, and the arguments that it was begun with."""
    folder = where / name
    shutil.copytree(OLD_RUNS / name, folder)
    arguments: list[str] = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    assert f"output_dir={name}" in arguments
    return folder, arguments


def measured_here(folder: Path, device: str) -> None:
    """Let a stored run have been measured on a device of this name."""
    file = folder / "provenance.json"
    provenance = json.loads(file.read_text())
    for holder in (provenance, *provenance["sessions"]):
        holder["device"]["name"] = device
    file.write_text(json.dumps(provenance))


def test_runs_begun_earlier_are_continued_and_reported(tmp_path: Path) -> None:
    done_before, arguments = old_run(tmp_path, "phase2_done")
    rows = (done_before / "records.jsonl").read_text()
    elsewhere = run(tmp_path, *arguments)
    assert elsewhere.returncode == 2, elsewhere.stderr
    assert "was measured otherwise" in elsewhere.stderr
    assert "allow_unlike=true" in elsewhere.stderr

    mixed = run(tmp_path, *arguments, "allow_unlike=true")
    assert mixed.returncode == 0, mixed.stderr
    assert "rows are measured already" in mixed.stderr
    assert (done_before / "records.jsonl").read_text() == rows, "what is complete is not measured again"
    assert_reported(done_before, "phase2_scaling.json", sessions=2)
    here = json.loads((done_before / "provenance.json").read_text())["sessions"][-1]["device"]["name"]

    interrupted, arguments = old_run(tmp_path, "phase1_interrupted")
    rows = (interrupted / "records.jsonl").read_text()
    measured_here(interrupted, here)
    no_time = run(tmp_path, *arguments, "measurement.time_limit_s=0.001")
    assert no_time.returncode == 130, no_time.stderr
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "rows are measured already" in done.stderr
    now = (interrupted / "records.jsonl").read_text()
    assert now.startswith(rows), "earlier rows stay where they are, as they are"
    ok = [row for row in map(json.loads, now.splitlines()) if row["status"] == "ok"]
    keys = [(row["point_id"], row["sample_id"], row["repeat"], row["mode"]) for row in ok]
    assert len(keys) == len(set(keys)), "nothing is measured twice"
    assert sum(key[0] == "dataset" and key[3] == "instrumented" for key in keys) == 6
    assert_reported(interrupted, "phase1_dataset_profiling.json", sessions=3)


def assert_reported(folder: Path, phase_file: str, *, sessions: int) -> None:
    outcome = json.loads((folder / "outcome.json").read_text())
    assert (outcome["state"], outcome["exit_status"]) == ("done", 0)
    assert len(json.loads((folder / "provenance.json").read_text())["sessions"]) == sessions
    for name in (phase_file, "summary.json", "report.html"):
        assert (folder / name).stat().st_size, name
    assert list((folder / "figures").glob("*.png"))


# Everything that a run leaves, slow


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "options"])
def test_what_a_run_leaves(tmp_path: Path, command: str) -> None:
    for name, sections in COMMANDS[command](tmp_path).items():
        kept(name, sections)


# The comparison itself


def test_the_lists_give_reasons_and_every_golden_file_is_used() -> None:
    for kind in ("added", "removed", "changed"):
        for entry in exceptions(kind):
            assert set(entry) == {"in", "key", "why"}, entry
            assert all(entry.values()), entry
    assert GOLDEN.is_dir()


def test_a_key_tree_and_its_differences() -> None:
    old = tree([{"a": 1, "b": [{"c": "x"}, {}], "state_before": {"z": 1}}, {"a": 2.5, "b": [], "state_before": None}])
    assert old == {"a": "number", "b[].c": "text?", "state_before": "open"}
    same: Section = {"a": "null", "b[].c": "text", "state_before": "open"}
    assert differences(old, same) == ([], [], [])
    assert differences(old, {"a": "text", "d": "bool", "state_before": "open"}) == ([], ["d"], ["a"])
    assert differences(old, {"a": "number"}) == (["state_before"], [], [])
    assert merged([{"a": "number", "b": "text"}, {"a": "null"}]) == {"a": "null|number", "b": "text?"}


def test_an_exception_names_a_section_and_a_key() -> None:
    entries = [{"in": "phase1 records.jsonl *", "key": "mfu_*", "why": "derived when read"}]
    assert excused(entries, "phase1 records.jsonl instrumented/ok", "mfu_prefill")
    assert not excused(entries, "phase2 records.jsonl instrumented/ok", "mfu_prefill")
    assert not excused(entries, "phase1 records.jsonl instrumented/ok", "T_total")
    assert excused([{"in": "*", "key": "results[].x", "why": "so"}], "any", "results[].x")
