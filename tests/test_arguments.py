"""What the command line says, arranged as Hydra takes it: the meaning stays, and Hydra composes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from vlmbench import __version__
from vlmbench.cli import hydra_errors, validate
from vlmbench.cli.argument_order import arranged
from vlmbench.cli.own_options import taken
from vlmbench.errors import ConfigError
from vlmbench.sweep import spaced
from vlmbench.text import LEVEL_VARIABLE, detail, note, say

Compose = Callable[..., DictConfig]
SETTINGS = st.sampled_from(["experiment=smoke", "seed=1,2", "output_dir=x", "~probe.energy", "+model.anatomy.head=[a]"])
OPTIONS = st.sampled_from([["-m"], ["--multirun"], ["--cfg", "job"], ["-c", "all"], ["--resolve"], ["--info", "config"],
                           ["-p", "model"], ["--cfg=job"]])  # fmt: skip


@given(st.lists(st.one_of(SETTINGS.map(lambda s: [s]), OPTIONS), max_size=6))
def test_settings_come_first_and_options_keep_their_values(words: list[list[str]]) -> None:
    found = arranged([word for group in words for word in group])
    settings = [group for group in words if not group[0].startswith("-")]
    options = [group for group in words if group[0].startswith("-")]
    assert found == [word for group in [*settings, *options] for word in group]


def test_an_option_without_its_value_takes_no_setting() -> None:
    assert arranged(["--info", "experiment=smoke"]) == ["experiment=smoke", "--info"]
    assert arranged(["a=1", "--", "-m", "b=2"]) == ["a=1", "--", "-m", "b=2"]


def axes(compose: Compose, *words: str) -> dict[str, list[int]]:
    composed = compose(*arranged(words))
    validate.validate(composed)
    return {axis.name: list(axis.values) for axis in validate.build(composed.sweep).parsed()}


@pytest.mark.parametrize(
    ("given_range", "spec"),
    [
        ("{start:64,stop:2048,num:4,spacing:log}", {"start": 64, "stop": 2048, "num": 4, "spacing": "log"}),
        ("{start: 64, stop: 2048, num: 4}", {"start": 64, "stop": 2048, "num": 4}),
        ("{start:64,stop:256,step:64}", {"start": 64, "stop": 256, "step": 64}),
        ("log(64, 2048, 4)", {"start": 64, "stop": 2048, "num": 4, "spacing": "log"}),
        ('"log(64, 2048, 4)"', {"start": 64, "stop": 2048, "num": 4, "spacing": "log"}),
    ],
)
def test_a_range_takes_the_place_of_a_list(compose: Compose, given_range: str, spec: dict[str, int | str]) -> None:
    for plus in ("", "++"):
        found = axes(compose, "experiment=phase2", f"{plus}sweep.axes.vision_tokens={given_range}")
        assert found == {"vision_tokens": spaced(spec)}


@pytest.mark.parametrize("words", ["engine_options={max_num_seqs:128}", "engine_options.max_num_seqs=128"])
def test_arguments_of_an_engine_are_taken_as_they_are_documented(compose: Compose, words: str) -> None:
    composed = compose(*arranged(["runtime=vllm", f"runtime.{words}"]))
    validate.validate(composed)
    assert composed.runtime.engine_options == {"max_num_seqs": 128}


def test_axes_as_a_mapping_replace_those_of_the_sweep(compose: Compose) -> None:
    assert axes(compose, "experiment=phase2", "sweep.axes={resolution:[56,112,224]}") == {"resolution": [56, 112, 224]}
    assert axes(compose, "sweep.axes={batch_size:[1,2],images:[1]}") == {"batch_size": [1, 2], "images": [1]}
    assert axes(compose, "experiment=phase2", "sweep.axes={resolution:[56]}", "+sweep.axes.images=[1,2]") == {
        "resolution": [56],
        "images": [1, 2],
    }
    added = axes(compose, "sweep=resolution", "+sweep.axes={batch_size:[1,2]}")
    assert list(added) == ["resolution", "batch_size"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sweep.axes={}", "a sweep without points.*\n.*sweep=none"),
        ("sweep.axes.vision_tokens={}", "axis 'vision_tokens': a range needs 'start', 'stop'"),
        ("sweep.axes.vision_tokens={start:1,stop:9,num:3,spacing:cubic}", "'spacing' must be linear or log"),
        ("sweep.axes.vision_tokens={start:1,stop:9,number:3}", "got also"),
    ],
)
def test_axes_that_make_no_points_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arranged([word])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["phase1"], "'phase1' is no setting.*did you mean experiment=phase1"),
        (["sweep"], "'sweep' is no setting.*sweep=CHOICE chooses one of: .*vision_tokens"),
        (["target_device=NVIDIA", "H200"], "\"target_device='NVIDIA H200'\""),
        (["experiment=phase1", "--model", "tiny"], "'--model' is no option; settings have no dashes: model=tiny"),
        (["--seed=3"], "settings have no dashes: seed=3"),
        (["--mulitrun"], "did you mean --multirun"),
    ],
)
def test_a_word_that_sets_nothing_is_answered_with_what_was_meant(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arranged(words)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("experiment=phase4", "did you mean phase3, phase2 or phase1? (--help lists all"),
        ("model=llava15", "did you mean llava_1_5_7b or llava_1_5_13b?"),
        ("runtime=eagr", "did you mean eager? (compiled, cudagraph, eager, endpoint, "),
        ("measurement.repeats=abc", "'measurement.repeats' must be a whole number (got 'abc')"),
        ("measurement.time_limit_s=long", "'measurement.time_limit_s' must be a number (got 'long')"),
        ("figures.width=x", "'figures.width' must be a number (got 'x')"),
        ("dry_run=maybe", "'dry_run' must be true or false (got 'maybe')"),
        ("sweep.axes.vision_tokens=[10,20", "cannot read 'sweep.axes.vision_tokens=[10,20': a ']' is missing"),
        ("target_device='H200", "a quote is not closed"),
        ("target_device=a[0]b", "needs two pairs of quotes, \"target_device='a[0]b'\""),
    ],
)
def test_what_hydra_refuses_is_said_in_the_words_of_this_house(compose: Compose, word: str, message: str) -> None:
    with pytest.raises(HydraException) as refused:
        compose(word)
    said = hydra_errors.compact(refused.value)
    assert message in said
    assert len(said.splitlines()) <= 2


def test_a_broken_yaml_file_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "tabbed.yaml").write_text("a: 1\n\tb: 2\n")
    with pytest.raises(yaml.YAMLError) as broken, (tmp_path / "tabbed.yaml").open() as file:
        yaml.safe_load(file)
    said = hydra_errors.of_yaml(broken.value)
    assert said.startswith(f"{tmp_path}/tabbed.yaml:2:1: ")
    assert "a tab is none" in said


def test_several_runs_are_one_text_unless_they_are_swept(compose: Compose) -> None:
    for given_runs in ("runs=a,b/c", "runs=[a,b/c]", "runs='a,b/c'"):
        assert compose(*arranged([given_runs])).runs == "a,b/c"
    assert arranged(["-m", "runs=a,b"]) == ["runs=a,b", "-m"]
    assert compose(*arranged(["runs=a,it's"])).runs == "a,it's"


def test_three_levels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, heard in ((["-q"], "say"), ([], "say note"), (["--verbose"], "say note detail")):
        monkeypatch.delenv(LEVEL_VARIABLE, raising=False)
        verbose = ["hydra.verbose=vlmbench"] if "--verbose" in words else []
        assert taken([*words, "seed=1"]) == ["seed=1", *verbose]
        for speak in (say, note, detail):
            speak(speak.__name__)
        assert capsys.readouterr().err.split() == [w for one in heard.split() for w in ("vlmbench:", one)]
        os.environ.pop(LEVEL_VARIABLE, None)
    with pytest.raises(ConfigError, match="say the opposite"):
        taken(["-q", "-v"])


def test_version_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        taken(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out == f"vlmbench {__version__}\n"


def test_only_the_command_itself_can_be_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/vlmbench/__main__.py"])
    with pytest.raises(ConfigError, match=r'eval "\$\(vlmbench -sc install=bash\)"'):
        taken(["-sc", "install=bash"])
    monkeypatch.setattr("sys.argv", ["/x/bin/vlmbench"])
    assert arranged(taken(["-sc", "query=bash"])) == ["-sc", "query=bash"]
