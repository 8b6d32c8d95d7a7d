"""Every shipped configuration is composed, validated and built."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from itertools import groupby, product
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from vlmbench.cli import validate
from vlmbench.cli.argument_order import arranged
from vlmbench.machine.installation import conf_dir
from vlmbench.records.config_history import as_stored, flat

Compose = Callable[..., DictConfig]
GROUPS = ("model", "dataset", "experiment", "sweep", "runtime", "tracker")


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in GROUPS for c in choices(g)])
def test_each_choice_composes_validates_and_builds(compose: Compose, group: str, choice: str) -> None:
    composed = compose(f"{group}={choice}", *(["dataset.path=x"] if choice == "hub" else []))
    validate.validate(composed)
    for node in ("model", "dataset", "sweep", "tracker", "measurement.stopping", "measurement.warmup"):
        validate.build(OmegaConf.select(composed, node))
    for name in composed.probe:
        validate.build(composed.probe[name])


@pytest.mark.parametrize("choice", choices("probe"))
def test_each_probe_builds_alone(compose: Compose, choice: str) -> None:
    composed = compose(f"probe=[{choice}]")
    validate.validate(composed)
    assert list(composed.probe) == [choice]
    assert validate.build(composed.probe[choice]).name == choice


def test_self_stands_before_experiment() -> None:
    """An experiment must be able to override what config.yaml itself says."""
    defaults = [
        next(iter(d)) if isinstance(d, DictConfig) else d for d in OmegaConf.load(conf_dir() / "config.yaml").defaults
    ]
    assert defaults.index("_self_") + 1 == defaults.index("experiment") == len(defaults) - 1


@pytest.mark.parametrize("choice", choices("experiment"))
def test_experiments_are_overlays_without_targets(choice: str) -> None:
    text = (conf_dir() / "experiment" / f"{choice}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert "_target_" not in text


@pytest.mark.parametrize("path", sorted(conf_dir().rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_site_stands_in_a_default(path: Path) -> None:
    text = path.read_text()
    assert "/home/" not in text
    assert "/scratch" not in text or path.stem == "anvil"


@pytest.mark.parametrize("choice", choices("model"))
def test_every_knob_of_a_model_stands_in_its_yaml(compose: Compose, choice: str) -> None:
    node = compose(f"model={choice}").model
    for knob in ("weights", "hub_id", "revision", "path", "trust_remote_code", "anatomy", "quantization"):
        assert knob in node, knob


def test_the_default_needs_no_network_and_no_files(compose: Compose) -> None:
    composed = compose()
    assert composed.model.weights == "random"
    assert composed.dataset._target_ == "vlmbench.data.synthetic.SyntheticVQA"


def test_targets_outside_the_package_are_refused(compose: Compose) -> None:
    composed = compose()
    composed.sweep._target_ = "os.system"
    with pytest.raises(validate.ConfigError, match="must name a class of vlmbench or of a plug-in"):
        validate.validate(composed)


def test_all_errors_come_at_once(compose: Compose) -> None:
    composed = compose()
    composed.sweep.axes = {"nope": [1]}
    composed.dataset.num_samples = "many"
    composed.measurement.repeats = 0
    with pytest.raises(validate.ConfigError) as caught:
        validate.validate(composed)
    for part in ("axis 'nope'", "'num_samples' must be int (got 'many')", "'measurement.repeats' must be 1 or more"):
        assert part in str(caught.value)


def test_what_experiments_set_is_told_by_the_key_and_not_by_words(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "unknown_key", lambda _, key, __: f"no such key: {key}")
    composed = compose()
    for part in ("dataset", "sweep"):
        OmegaConf.set_struct(composed[part], False)
        composed[part]._target_ = "vlmbench.sweep.Sweep"
        composed[part].num_samples = 5
    with pytest.raises(validate.ConfigError) as caught:
        validate.validate(composed)
    said = str(caught.value).splitlines()
    told = "dataset: no such key: num_samples; experiments say how many samples they take"
    assert any(line.startswith(told) for line in said)
    assert "sweep: no such key: num_samples" in said, "no experiment sets it"


def test_a_refused_value_is_told_as_its_class_tells_it(compose: Compose) -> None:
    composed = compose()
    composed.measurement.stopping.min_samples = 0
    assert validate.check_component(composed.measurement.stopping) == ["'min_samples' must be 2 or more (got 0)"]


def _values(setting: str) -> list[str]:
    """A setting for each of its values in a multirun."""
    name, _, values = setting.partition("=")
    return [setting] if values.startswith("[") else [f"{name}={value}" for value in values.split(",")]


def test_every_part_of_the_results_composes(compose: Compose, tmp_path: Path) -> None:
    scripts = Path(__file__).parent.parent / "scripts"
    listed = subprocess.run(
        [scripts / "results.sh", tmp_path, "--list"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SMALL": ""},
    ).stdout
    parts = [line.split("\t") for line in listed.splitlines()]
    rows = [lane for lane, _ in groupby(lane for _, lane, *_ in parts)]
    assert all(rows.count(lane) == 1 for lane in rows if lane[1:]), "a group's parts stand in a row"
    assert len({name for name, *_ in parts}) == len(parts) > 30
    for name, lane, limit, words in parts:
        assert lane[0] in "0123-", name
        assert 0 < int(limit) <= 600, name
        first, *others = (word for word in words.split() if not re.match("[A-Z][A-Z0-9_]*=", word))
        if lane[1:]:  # measures in turns with those beside it
            assert re.fullmatch("[a-z]", lane[1:]), name
            assert first != "-m", name
            assert not first.endswith(".sh"), name
            assert "energy" not in words, "a card's energy is that of all its processes"
        if first.endswith(".sh"):
            assert os.access(scripts.parent / first, os.X_OK)
            continue
        choices = [one for one in (first, *others) if "=" in one and "experiment=measured" not in one]
        for job in product(*(_values(one) if first == "-m" else [one] for one in choices)):
            validate.validate(compose(*arranged(job)))
    for file in (scripts / "results" / "experiment").glob("*.yaml"):
        for choices in yaml.safe_load(file.read_text())["parts"].values():
            validate.validate(compose(*choices))


# What SMALL=1 has less of; the model's own layers are for methods that the tiny one is too small for.
_SMALLER = re.compile(
    r"(dataset\.num_samples|output\.tokens|measurement\.stopping\.m(in|ax)_samples|sweep\.axes\.(vision|output)_tokens"
    r"|latency_ms|percentile|model\.config\.text_config\.num_hidden_layers)="
)


def test_the_small_trial_of_the_results_has_the_settings_of_the_real_run(tmp_path: Path) -> None:
    scripts = Path(__file__).parent.parent / "scripts"

    def parts(small: str) -> dict[str, set[str]]:
        done = subprocess.run(
            [scripts / "results.sh", tmp_path, "--list"], capture_output=True, text=True, check=True,
            env={**os.environ, "SMALL": small},
        )  # fmt: skip
        found = {name: words.split() for name, _, _, words in (line.split("\t") for line in done.stdout.splitlines())}
        return {
            name: {re.sub(r"=measured\w*", "=measured", word) for word in words if not _SMALLER.match(word)}
            for name, words in found.items()
        }

    real, small = parts(""), parts("1")
    assert any("measurement.change_processor=true" in words for words in small.values())
    assert real == small
    files = {
        name: yaml.safe_load((scripts / "results" / "experiment" / f"{name}.yaml").read_text())["parts"]
        for name in ("sweeps", "measured", "measured_small")
    }
    for name, words in {**files["sweeps"], **files["measured"]}.items():
        kept = {word for word in words if not _SMALLER.match(word)}
        assert kept == {word for word in files["measured_small"][name] if not _SMALLER.match(word)}, name


@pytest.mark.parametrize("choice", [name for name in choices("model") if name.startswith(("qwen2_vl", "qwen2_5_vl"))])
def test_qwens_rotary_sections_are_written_out(compose: Compose, choice: str) -> None:
    """transformers up to 5.16, which vLLM brings, has no default of them; runs begun before can be continued."""
    text: Any = OmegaConf.to_container(compose(f"model={choice}").model.config.text_config)
    rope = text.pop("rope_parameters")
    assert 2 * sum(rope["mrope_section"]) == text["hidden_size"] // text["num_attention_heads"]
    now = {"model": {"config": {"text_config": {**text, "rope_parameters": rope}}}}
    before = {"model": {"config": {"text_config": text}}}
    assert as_stored(now, before) == dict(flat(before))
