"""Keys that came, left or moved since a run directory was begun."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from vlmbench.cli import validate
from vlmbench.errors import DirectoryConflictError
from vlmbench.records import config_history
from vlmbench.records.config_history import as_stored, flat
from vlmbench.records.provenance import begin_session, check_directory, collect

OLD_WARMUP = "vlmbench.loop.Warmup"
NEW_WARMUP = "vlmbench.runner.Warmup"
BEGUN: dict[str, Any] = {
    "seed": 3,
    "output_dir": "/scratch/alice/run",
    "dataset": {"name": "vqa_v2", "root": "/home/alice/vqa"},
    "measurement": {"repeats": 2, "sizes": [1, 2], "warmup": {"_target_": OLD_WARMUP, "max_runs": 5}},
    "probe": {"timeline": {}, "recompiles": {"limit": 8}},
}


def present() -> dict[str, Any]:
    """What the same command composes today: a group and a key more, a probe less, a component elsewhere."""
    config = json.loads(json.dumps(BEGUN))
    config["engine"] = {"_target_": "vlmbench.engines.transformers.Generate", "options": {}}
    config["measurement"]["clients"] = 1
    config["measurement"]["warmup"]["_target_"] = NEW_WARMUP
    del config["probe"]["recompiles"]
    return config


@pytest.fixture(autouse=True)
def _tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "engine": {"_target_": "vlmbench.engines.transformers.Generate", "options": {}},
        "measurement": {"clients": 1},
    }.items():
        monkeypatch.setitem(config_history.ADDED, key, value)
    monkeypatch.setitem(config_history.REMOVED, "probe", {"recompiles": {"limit": 8}})
    monkeypatch.setitem(config_history.ALIASES, OLD_WARMUP, NEW_WARMUP)


def begin(directory: Path, config: dict[str, Any]) -> None:
    begin_session(directory, collect(config, model_facts={}, device="cpu", seed=3))


@pytest.mark.parametrize("of_today", [False, True])
def test_the_same_command_continues_what_was_begun_before(tmp_path: Path, of_today: bool) -> None:
    begin(tmp_path, present() if of_today else BEGUN)
    assert check_directory(tmp_path, present())


def test_a_moved_component_is_one_under_both_names(tmp_path: Path) -> None:
    begin(tmp_path, present())
    config = present()
    config["measurement"]["warmup"]["_target_"] = OLD_WARMUP
    assert check_directory(tmp_path, config)


@pytest.mark.parametrize(
    ("path", "value", "difference"),
    [
        ("measurement.clients", 2, "measurement.clients: (absent) → 2"),
        ("measurement.clients", True, "measurement.clients: (absent) → true"),
        ("engine.options", {"graphs": True}, "engine.options.graphs: (absent) → true"),
        ("measurement.surprise", 1, "measurement.surprise: (absent) → 1"),
        ("measurement.warmup._target_", "vlmbench.runner.loop.Other", f'"{OLD_WARMUP}" → "vlmbench.runner.loop.Other"'),
        ("probe.recompiles", {"limit": 9}, "probe.recompiles.limit: 8 → 9"),
        ("seed", 4, "seed: 3 → 4"),
    ],
)
def test_whatever_changes_the_run_is_refused_and_only_that_is_named(
    tmp_path: Path, path: str, value: object, difference: str
) -> None:
    begin(tmp_path, BEGUN)
    config = node = present()
    *parents, last = path.split(".")
    for part in parents:
        node = node[part]
    node[last] = value
    with pytest.raises(DirectoryConflictError) as caught:
        check_directory(tmp_path, config)
    first = str(caught.value).splitlines()[0]
    assert difference in first
    assert first.count("→") == 1


def test_a_key_that_left_is_no_excuse_for_another_value(tmp_path: Path) -> None:
    begun = json.loads(json.dumps(BEGUN))
    begun["probe"]["recompiles"]["limit"] = 9
    begin(tmp_path, begun)
    with pytest.raises(DirectoryConflictError, match=r"probe\.recompiles\.limit: 9 → \(absent\)"):
        check_directory(tmp_path, present())


LEAVES = st.sampled_from([None, True, 1, "text", [1]])
TREES = st.dictionaries(st.sampled_from("abc"), LEAVES | st.dictionaries(st.sampled_from("abc"), LEAVES))


@given(TREES, TREES)
def test_without_an_entry_in_the_tables_nothing_is_forgiven(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert as_stored(now, before) == dict(flat(now))


def test_a_stored_target_is_checked_and_built_as_the_present_one(
    compose: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(config_history.ALIASES, "vlmbench.older.Sweep", "vlmbench.sweep.Sweep")
    config = compose("sweep._target_=vlmbench.older.Sweep")
    validate.validate(config)
    assert config.sweep._target_ == "vlmbench.sweep.Sweep"
    assert type(validate.build(config.sweep)).__name__ == "Sweep"


def test_a_sweep_of_batches_that_was_begun_before_goes_on_with_copies_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config_history.ADDED, "measurement", {"batch": "different"})
    before = {"sweep": {"axes": {"batch_size": [1, 2]}}, "measurement": {"repeats": 1}}
    for batch, same in (("copies", True), ("different", False)):
        now = {**before, "measurement": {"repeats": 1, "batch": batch}}
        assert (as_stored(now, before) == dict(flat(before))) is same
    other = {"measurement": {"repeats": 1}}
    assert as_stored({"measurement": {"repeats": 1, "batch": "different"}}, other) == dict(flat(other))
